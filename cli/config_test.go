package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// Every backend is asked once, and a server that the check does not fit is shown
// with the line to write.
func TestConfigCheckLive(t *testing.T) {
	ready := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") })
	apiserver, plain := httptest.NewTLSServer(ready), httptest.NewServer(ready)
	other := httptest.NewTLSServer(http.NotFoundHandler())
	stopping := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			http.Error(w, "shutting down", http.StatusInternalServerError)
		}
	}))
	for _, s := range []*httptest.Server{apiserver, plain, other, stopping} {
		s.Config.ErrorLog = nil
		defer s.Close()
	}
	at := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	gone := httptest.NewServer(ready)
	dead := at(gone)
	gone.Close()
	path := filepath.Join(t.TempDir(), "config.yaml")
	write := func(backends ...string) {
		t.Helper()
		text := "role: worker\nloadBalancers:\n- port: 6443\n  listen: [127.0.0.1]\n  check: {inter: 10s}\n  backends: [" +
			strings.Join(backends, ", ") + "]\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func() (code int, out, errs string) {
		var stdout, stderr strings.Builder
		code = Run(t.Context(), Build{}, []string{"appliance", "config", "check", "--live", path}, &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}
	write(at(apiserver))
	if code, out, errs := run(); code != 0 || !strings.Contains(out, "up") || errs != "" {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
	write(at(apiserver), at(plain), at(other), at(stopping), dead)
	code, out, errs := run()
	if code != exitFailed || !strings.Contains(errs, "4 of 5 backends") {
		t.Errorf("%d %s", code, errs)
	}
	for _, want := range []string{
		at(apiserver) + ` +up `, at(plain) + ` +down +answers in plain HTTP, without TLS`, at(other) + ` +down +answers 404`,
		at(stopping) + ` +draining `, dead + ` +down +refuses`,
		`loadBalancers\[0\] \(lb-6443\) are as they should be, write there:\n  check: {type: http}`,
		`\n  check: {path: a page that it has}, or check: {type: tls}`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
}

// A program that others can write to is refused with its place, before anything
// is touched; one that is not on this machine only where it would be run.
func TestConfigCheckPrograms(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "check.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(script, 0o777); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.yaml")
	check := func(program string, args ...string) (int, string) {
		t.Helper()
		text := "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\n" +
			fmt.Sprintf("tracks:\n- exec: [%s]\nhooks:\n- on: [holder]\n  exec: [%s]\n", program, program)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr strings.Builder
		line := append(append([]string{"appliance", "config", "check"}, args...), path)
		code := Run(t.Context(), Build{}, line, &stdout, &stderr)
		return code, stderr.String()
	}
	code, errs := check(script)
	for _, want := range []string{
		"config.yaml:5: tracks[0].exec: " + script + " can be written by",
		"config.yaml:7: hooks[0].exec: " + script, "chmod go-w " + script,
	} {
		if code != exitConfig || !strings.Contains(errs, want) {
			t.Errorf("%d %s\nwant %s", code, errs, want)
		}
	}
	if code, errs := check(filepath.Join(dir, "elsewhere.sh")); code != 0 {
		t.Errorf("%d %s", code, errs)
	}
	code, errs = check(filepath.Join(dir, "elsewhere.sh"), "--live")
	if code != exitFailed || !strings.Contains(errs, "correct the path") {
		t.Errorf("%d %s", code, errs)
	}
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	if code, errs := check(script); code != 0 {
		t.Errorf("%d %s", code, errs)
	}
}

// TestPipes gives commands a pipe that nobody writes to, which must not keep them, and pipes that a shell made.
func TestPipes(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[int][]string{
		exitConfig: {"appliance", "config", "check", pipe},
		exitFailed: {"appliance", "convert", pipe},
	} {
		var stdout, stderr bytes.Buffer
		code := Run(t.Context(), Build{}, args, &stdout, &stderr)
		if code != want || stdout.Len() > 0 || !strings.Contains(stderr.String(), "pipe") {
			t.Errorf("%q ends with %d, want %d; stdout %q, stderr %q", args, code, want, &stdout, &stderr)
		}
	}
	for text, args := range map[string][]string{
		"stream {\n  server { listen 192.0.2.20:6443; proxy_pass 192.0.2.21:6443; }\n}\n": {"convert", "--vip", "192.0.2.20",
			"--peers", "192.0.2.2,192.0.2.3,192.0.2.4", "--from", "nginx"},
		"vips: [192.0.2.20]\npeers: [192.0.2.2, 192.0.2.3, 192.0.2.4]\ngroup: {insecure: true}\nloadBalancers: []\n": {
			"config", "check"},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		w.Close()
		var stdout, stderr bytes.Buffer
		args = append(append([]string{"appliance"}, args...), fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
		if code := Run(t.Context(), Build{}, args, &stdout, &stderr); code != 0 || stdout.Len() == 0 {
			t.Errorf("%q of a pipe ends with %d; stdout %q, stderr %q", args, code, &stdout, &stderr)
		}
	}
}
