package balancer

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ShortOf names what this host or this process lacks, if that is why err came
// about: files, ports, buffers, memory or processes. It is empty for every other
// error. A shortage here says nothing about a server.
func ShortOf(err error) string {
	for _, s := range [...]struct {
		errno unix.Errno
		of    string
	}{
		{unix.EMFILE, "files"},
		{unix.ENFILE, "files"},
		{unix.EADDRNOTAVAIL, "ports"}, // connect(2): every local port is in use
		{unix.ENOBUFS, "buffers"},
		{unix.ENOMEM, "memory"},
	} {
		if errors.Is(err, s.errno) {
			return s.of
		}
	}
	// Elsewhere EAGAIN only means that nothing is there yet.
	var start *fs.PathError
	if errors.Is(err, unix.EAGAIN) && errors.As(err, &start) && start.Op == "fork/exec" {
		return "processes"
	}
	return ""
}

// shortRemedy says how more of it can be had.
var shortRemedy = map[string]string{
	"files":     "raise LimitNOFILE, or lower maxConn",
	"ports":     "widen the sysctl net.ipv4.ip_local_port_range, or add backends",
	"buffers":   "raise the sysctls net.core.wmem_max and net.ipv4.tcp_mem, or lower the load",
	"memory":    "give the host or the pod more memory, or lower the load",
	"processes": "raise TasksMax or the limit of processes",
}

// A Shortage is something that this host or process has lacked since its start.
type Shortage struct {
	// Of is what ShortOf says. At is where it was lacking: accept, dial, check or
	// track.
	Of string `json:"of"`
	At string `json:"at"`
	// Count is how often it was lacking.
	Count uint64 `json:"count"`
	// Refused is how many clients were refused because they had waited too long.
	Refused uint64 `json:"refused,omitempty"`
	// Last is when it was lacking last.
	Last time.Time `json:"last"`
	// Active says that it was lacking within the last shortFor.
	Active bool `json:"active"`
}

const (
	// shortFor is how long a shortage counts as active after it was last seen.
	shortFor = 10 * time.Second
	// shortLogEvery is the time between two log lines about one shortage.
	shortLogEvery = time.Minute
)

// Shortages counts shortages, and logs each at most once a minute. The zero value
// is ready, and logs to slog.Default().
type Shortages struct {
	Log *slog.Logger

	mu   sync.Mutex
	seen map[[2]string]*seenShortage
}

type seenShortage struct {
	Shortage
	logged time.Time
}

// Note counts a shortage at a place, and reports whether err is one at all. A nil
// Shortages counts nothing.
func (s *Shortages) Note(at string, err error) bool {
	of := ShortOf(err)
	if of == "" || s == nil {
		return of != ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := [2]string{at, of}
	one := s.seen[key]
	if one == nil {
		if s.seen == nil {
			s.seen = make(map[[2]string]*seenShortage)
		}
		one = &seenShortage{Shortage: Shortage{Of: of, At: at}}
		s.seen[key] = one
	}
	now := time.Now()
	one.Count++
	one.Last = now
	if one.logged.IsZero() || now.Sub(one.logged) >= shortLogEvery {
		one.logged = now
		cmp.Or(s.Log, slog.Default()).Error("this node is short of "+of+"; no server is blamed for that",
			"at", at, "effect", shortEffect[at], "remedy", shortRemedy[of], "error", err)
	}
	return true
}

// Refuse counts a client that was refused for a shortage that Note has counted.
func (s *Shortages) Refuse(at, of string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.seen[[2]string{at, of}]; one != nil {
		one.Refused++
	}
}

// shortEffect says what happens to those who wait.
var shortEffect = map[string]string{
	"accept": "new clients of user space wait, and are refused after a few seconds",
	"dial":   "new clients of user space wait for another try, and are refused when it fails too",
	"check":  "the backends keep their state",
	"track":  "the track keeps its state",
}

// Words is the shortage for people.
func (s Shortage) Words() string {
	return "short of " + s.Of + " at " + s.At + ": " + shortEffect[s.At] + "; " + shortRemedy[s.Of]
}

// List is every shortage since the start, by place and kind.
func (s *Shortages) List() []Shortage {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Shortage
	for _, one := range s.seen {
		one.Active = time.Since(one.Last) < shortFor
		list = append(list, one.Shortage)
	}
	slices.SortFunc(list, func(a, b Shortage) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Of, b.Of)) })
	return list
}
