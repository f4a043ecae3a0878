package demo

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"appliance/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPicture(t *testing.T) {
	var tries []lab.Try
	for i := range 40 {
		try := lab.Try{Start: time.Unix(int64(i), 0)}
		if i == 6 || i == 7 || i == 8 {
			try.Err = errors.New("refused")
		}
		tries = append(tries, try)
	}
	p := picture{
		vip: netip.MustParseAddrPort("[fd77::10]:6443"),
		peers: []peerView{
			{id: "p1", addr: netip.MustParseAddr("fd77::11"), alive: true, ready: true, holds: true, plane: "direct",
				requests: 21},
			{id: "p2", addr: netip.MustParseAddr("fd77::12"), holds: true, plane: "direct"},
			{id: "p3", addr: netip.MustParseAddr("fd77::13"), alive: true, ready: true},
		},
		tries:  tries,
		events: []event{{1500 * time.Millisecond, "SIGKILL for the appliance on p2"}},
	}
	text := strings.Join(p.draw(), "\n")
	for _, want := range []string{
		"[fd77::10]:6443",
		"* p1  fd77::11     answers for the address",
		"data plane direct",
		"server answered 21",
		"x p2  fd77::12     dead",
		"  p3  fd77::13     ready",
		"40, failed 3",
		"1.50 s  SIGKILL for the appliance on p2",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the picture lacks %q:\n%s", want, text)
		}
	}
	if strings.Count(text, "data plane") != 1 {
		t.Errorf("a dead appliance has a data plane:\n%s", text)
	}
	signs := strings.NewReplacer(red, "", green, "", normal, "").Replace(drawTries(tries))
	if want := "·xx·······"; signs != want {
		t.Errorf("requests are drawn as %q, want %q", signs, want)
	}
	// A sign is never drawn of other requests than before.
	if again := drawTries(append(tries, lab.Try{})); again != drawTries(tries) {
		t.Errorf("one more request changed the signs of others: %q", again)
	}
}

// TestRunFails shows an appliance that cannot start: the demo says so, with
// its last words, and leaves nothing behind.
func TestRunFails(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	binary := filepath.Join(tmp, "appliance")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho no room for $1\ntest $1 = keygen\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err := Run(t.Context(), RunOptions{Binary: binary, Out: &out})
	if err == nil || !strings.Contains(err.Error(), "p1: no room for start") {
		t.Errorf("the error is %v, want the appliance's last words", err)
	}
	if !strings.Contains(out.String(), "three machines") {
		t.Errorf("the story was not told line by line: %q", out.String())
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRunWithoutBinary(t *testing.T) {
	if err := Run(t.Context(), RunOptions{Binary: "/nowhere/appliance", Out: &strings.Builder{}}); err == nil {
		t.Error("a demo of nothing went well")
	}
}
