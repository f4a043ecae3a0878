package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"appliance/configs"
	"appliance/lab"
)

// asDoctor is the variable that makes this test binary examine its own network namespace.
const asDoctor = "APPLIANCE_TEST_DOCTOR"

func TestMain(m *testing.M) {
	text := os.Getenv(asDoctor)
	switch {
	case text == "":
		os.Exit(m.Run())
	case text == "answer":
		Answer(context.Background(), netip.MustParseAddrPort("[::]:10000"))
	default:
		cfg, err := configs.Parse("test", []byte(text), configs.Source{FileExists: func(string) bool { return false }})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		json.NewEncoder(os.Stdout).Encode(Examine(context.Background(), System{}, Request{Config: cfg}))
	}
}

// The real host is asked in namespaces: the address is free, then taken by a machine that is no peer, for both
// families.
func TestOnALAN(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	machine := func(name string, addrs ...string) *lab.Machine {
		t.Helper()
		var list []netip.Prefix
		for _, a := range addrs {
			list = append(list, netip.MustParsePrefix(a))
		}
		n, err := l.Machine(name, list...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	node := machine("node", "192.0.2.11/24", "2001:db8::11/64")
	peer := machine("peer", "192.0.2.12/24", "2001:db8::12/64")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	run := func(n *lab.Machine, text string, out io.Writer) *lab.Process {
		t.Helper()
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), asDoctor+"="+text)
		cmd.Stdout, cmd.Stderr = out, os.Stderr
		p, err := n.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	dir := t.TempDir()
	examine := func() Diagnosis {
		t.Helper()
		var out bytes.Buffer
		text := "vips: [192.0.2.10, '2001:db8::10']\npeers: [192.0.2.11+2001:db8::11, 192.0.2.12+2001:db8::12, " +
			"192.0.2.13+2001:db8::13]\n" +
			"group: {insecure: true}\ndataDir: " + dir + "\n"
		if err := run(node, text, &out).Wait(); err != nil {
			t.Fatal(err)
		}
		var r Diagnosis
		if err := json.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		return r
	}
	expect := func(r Diagnosis, severity Severity, check, what string) {
		t.Helper()
		for _, f := range r.Findings {
			if f.Check == check && f.Severity == severity && strings.Contains(f.What, what) {
				return
			}
		}
		var b strings.Builder
		r.Text(&b, false)
		t.Errorf("no %s of %s with %q in\n%s", severity, check, what, &b)
	}
	answerer := run(peer, "answer", nil)
	defer answerer.Kill()
	if err := peer.WaitPort(t.Context(), netip.MustParseAddrPort("192.0.2.12:10000")); err != nil {
		t.Fatal(err)
	}
	r := examine()
	expect(r, Fine, "vip-free", "192.0.2.10")
	expect(r, Fine, "vip-free", "2001:db8::10")
	expect(r, Fine, "self", "192.0.2.11")
	expect(r, Fine, "nf_tables", "")
	expect(r, Fine, "peer", "192.0.2.12 (192.0.2.12:10000) answers by TCP and UDP")
	expect(r, Problem, "peer", "192.0.2.13")
	expect(r, Fine, "interface", "192.0.2.10 belongs on eth0")

	machine("stranger", "192.0.2.10/24", "2001:db8::10/64")
	r = examine()
	expect(r, Problem, "vip-free", "192.0.2.10 is taken")
	expect(r, Problem, "vip-free", "2001:db8::10 is taken")
	if rest, err := os.ReadDir(dir); err != nil || len(rest) > 0 {
		t.Errorf("the examination left %v in the data directory (%v)", rest, err)
	}
}

// unpack returns names and texts of a tar.gz.
func unpack(t *testing.T, r io.Reader) string {
	t.Helper()
	z, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for files := tar.NewReader(z); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(h.Name + "\n")
		if _, err := io.Copy(&b, files); err != nil {
			t.Fatal(err)
		}
	}
}
