package raftlog

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// repeatQuiet is the time in which one text is logged only once.
const repeatQuiet = time.Minute

// maxTexts bounds the memory of texts that were logged. They are constants of the library, so there are few.
const maxTexts = 128

// expected says that package raft logs the same better, or that msg says nothing to an operator.
func expected(msg string) bool {
	for _, s := range []string{
		"heartbeat timeout reached", "rejecting vote request", "rejecting pre-vote request",
		"failed to contact", "failed to heartbeat", "failed to make requestVote", "failed to appendEntries",
		"failed to pipeline", "Election timeout reached", "duplicate requestVote", "failed to decode incoming command",
		"failed to flush response", "no known peers", "not part of stable configuration", "appendEntries rejected",
		"peer has newer term", "unable to get address for server", "failed to get previous log",
		"previous log term mis-match",
		"clearing log suffix", "new leader elected",
	} {
		if strings.HasPrefix(msg, s) {
			return true
		}
	}
	return false
}

// New is an hclog.Logger that ends in log.
func New(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Output: io.Discard, Level: hclog.Debug})
	l.RegisterSink(&sink{log: log, last: make(map[string]time.Time)})
	return l
}

// sink implements hclog.SinkAdapter.
type sink struct {
	log *slog.Logger

	mu   sync.Mutex
	last map[string]time.Time
}

func (s *sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Warn && !expected(msg) && s.first(msg, time.Now()) {
		to = slog.LevelWarn
	}
	if !s.log.Enabled(context.Background(), to) {
		return
	}
	for i, a := range args {
		// The library hands over its own structs, whose fields change meanwhile.
		switch v := a.(type) {
		case fmt.Stringer:
			args[i] = v.String()
		case hclog.Format:
			args[i] = fmt.Sprintf(v[0].(string), v[1:]...)
		}
	}
	s.log.Log(context.Background(), to, "raft: "+msg, args...)
}

func (s *sink) first(msg string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.last[msg]; (ok && now.Sub(t) < repeatQuiet) || (!ok && len(s.last) >= maxTexts) {
		return false
	}
	s.last[msg] = now
	return true
}
