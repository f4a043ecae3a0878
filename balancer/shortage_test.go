package balancer

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestShortOf(t *testing.T) {
	dial := func(errno unix.Errno) error {
		return fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)})
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errRefused, ""},
		{dial(unix.ECONNREFUSED), ""},
		{dial(unix.ETIMEDOUT), ""},
		{dial(unix.EMFILE), "files"},
		{dial(unix.ENFILE), "files"},
		{dial(unix.EADDRNOTAVAIL), "ports"},
		{dialError(dial(unix.EADDRNOTAVAIL)), "ports"},
		{dial(unix.ENOBUFS), "buffers"},
		{dial(unix.ENOMEM), "memory"},
		{&fs.PathError{Op: "fork/exec", Path: "/bin/true", Err: unix.EAGAIN}, "processes"},
		{&fs.PathError{Op: "read", Path: "/dev/x", Err: unix.EAGAIN}, ""},
		{dial(unix.EAGAIN), ""},
	} {
		if got := ShortOf(tt.err); got != tt.want {
			t.Errorf("%v: short of %q, want %q", tt.err, got, tt.want)
		}
	}
}

// What this host is short of says nothing about a backend, however long it lasts.
func TestShortageChangesNoState(t *testing.T) {
	s := newServers()
	s.set(addr(2), errRefused)
	var log strings.Builder
	var mu sync.Mutex // the checks end in goroutines of their own
	var ended []error
	setUp := func(m *monitor) {
		m.shortages = &Shortages{Log: slog.New(slog.NewTextHandler(&log, nil))}
		m.ended = func(_ Target, _ time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			if ShortOf(err) != "" {
				ended = append(ended, err)
			}
		}
	}
	watch(t, s, usual, 3, func(m *monitor, changes func() []string) {
		time.Sleep(10 * time.Second)
		changes()
		for i := range 3 {
			s.set(addr(i+1), os.NewSyscallError("socket", unix.EMFILE))
		}
		before := s.asked(addr(1))
		time.Sleep(10 * time.Minute)
		if got := changes(); len(got) > 0 {
			t.Errorf("changes: %v", got)
		}
		for n, want := range map[int]BackendState{1: Up, 2: Down, 3: Up} {
			if got := state(t, m, n); got.State != want {
				t.Errorf("backend %d is %s (%s), want %s", n, got.State, got.Reason, want)
			}
		}
		mu.Lock()
		if len(ended) > 0 {
			t.Errorf("reported as checks: %v", ended)
		}
		mu.Unlock()
		if n := s.asked(addr(1)) - before; n < 100 {
			t.Errorf("tried only %d times in 10 minutes", n)
		}
		list := m.shortages.List()
		if len(list) != 1 || list[0].Of != "files" || list[0].At != "check" || list[0].Count < 300 || !list[0].Active {
			t.Errorf("shortages are %+v", list)
		}
		if n := strings.Count(log.String(), "\n"); n < 2 || n > 11 {
			t.Errorf("%d lines in 10 minutes:\n%s", n, log.String())
		}
		// A real failure counts again.
		s.set(addr(1), errors.New("gone"))
		time.Sleep(10 * time.Second)
		if got := state(t, m, 1); got.State != Down {
			t.Errorf("backend 1 is %s", got.State)
		}
		for i := range 3 {
			s.set(addr(i+1), nil)
		}
		time.Sleep(time.Minute)
		if list := m.shortages.List(); list[0].Active {
			t.Error("a shortage that is over is still active")
		}
	}, setUp)
}
