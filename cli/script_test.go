package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"appliance": func() {
			os.Exit(Run(context.Background(), Build{Version: "unreleased"}, os.Args, os.Stdout, os.Stderr))
		},
	})
}

// TestScripts tests the command line as text: stdout is data only, stderr has
// the hint, and the exit code tells a bad command line from a failure.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true})
}

// systemd starts what failed again, but for what only a person can put right.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	bad, none := filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "none.yaml")
	if err := os.WriteFile(bad, []byte("vips: [here]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A directory is no program: no retry mends that.
	program := filepath.Join(dir, "program.yaml")
	text := "vips: [192.0.2.10]\npeers: [192.0.2.11]\ngroup: {insecure: true}\n" +
		"hooks: [{on: [holder], exec: [" + dir + "]}]\n"
	if err := os.WriteFile(program, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		want int
	}{
		{"config check " + program, exitConfig},
		{"config check --host " + program, exitConfig},
		{"start --config " + bad, exitConfig},
		{"start --vip 192.0.2.300", exitConfig},
		{"config check " + bad, exitConfig},
		{"manifest --config " + bad, exitConfig},
		{"start --config " + none, exitFailed}, // perhaps not mounted yet
		{"start --frobnicate", exitUsage},
		{"version", 0},
	} {
		if got := Run(t.Context(), Build{}, strings.Fields("appliance "+tt.args), io.Discard, io.Discard); got != tt.want {
			t.Errorf("%s: exit code %d, want %d", tt.args, got, tt.want)
		}
	}
	unit, err := os.ReadFile("../packaging/appliance.service")
	want := "\nRestartPreventExitStatus=" + strconv.Itoa(exitConfig) + "\n"
	if err != nil || !strings.Contains(string(unit), want) {
		t.Errorf("the unit lacks %q: %v", want, err)
	}
}
