package node

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/configs"
	"appliance/script"
)

func TestMain(m *testing.M) {
	script.RunIfChild()
	os.Exit(m.Run())
}

// TestProgramCheck: a program is told which server it is asked about, its exit code decides, and it is looked at anew
// each time.
func TestProgramCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "check.sh")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	backend := balancer.Backend{Name: "db", Addr: netip.MustParseAddrPort("192.0.2.21:5432")}
	check := balancer.Check{Type: balancer.CheckProgram, Exec: []string{path, "one"}, Port: 80,
		User: strconv.Itoa(os.Geteuid())}
	c, err := NewChecker(check) // the file need not be there yet
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return c.Check(ctx, backend)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a file: %v", err)
	}
	write(`test "$1 $APPLIANCE_BACKEND $APPLIANCE_ADDRESS $APPLIANCE_PORT" = "one db 192.0.2.21 80"`)
	if err := ask(); err != nil {
		t.Errorf("a healthy server: %v", err)
	}
	write(`echo "is read-only"; exit 3`)
	if err := ask(); err == nil || err.Error() != "check.sh: exit status 3: is read-only" {
		t.Errorf("an unhealthy server: %v", err)
	}
	// The configuration names a file that is not there, and one that anybody may write to.
	cfg := &configs.Config{LoadBalancers: []configs.LoadBalancerEntry{{Check: check}}}
	if err := CheckPrograms(cfg); err != nil {
		t.Errorf("a good file: %v", err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := CheckPrograms(cfg); err == nil || !strings.Contains(err.Error(), "loadBalancers[0].check") {
		t.Errorf("a file that anybody may change: %v", err)
	}
	cfg.LoadBalancers[0].Check.User = "nobody"
	if !cfg.ProgramsOfOthers() {
		t.Error("to run it as nobody needs no capability")
	}
}
