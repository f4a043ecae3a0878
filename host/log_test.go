package host

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// paper takes lines from several goroutines.
type paper struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *paper) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

// lines returns what was written since the last call.
func (p *paper) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := strings.TrimSpace(p.text.String())
	p.text.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func TestLogDampsRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out paper
		log, err := NewLog(&out, "text", "debug", nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			log.Warn("disk is full", "dir", "/a")
		}
		if n := len(out.lines()); n != repeatBurst {
			t.Errorf("%d lines of one thousand", n)
		}
		log.Warn("disk is full", "dir", "/b")
		log.With("peer", "n2").Warn("disk is full", "dir", "/a")
		if n := len(out.lines()); n != 2 {
			t.Errorf("%d lines of two that differ", n)
		}
		time.Sleep(repeatSpan)
		log.Warn("disk is full", "dir", "/a")
		if got := out.lines(); len(got) != 1 || !strings.Contains(got[0], "repeated=995") {
			t.Errorf("after a while: %q", got)
		}
		for range 20 {
			log.Debug("detail")
		}
		if n := len(out.lines()); n != 20 {
			t.Errorf("%d lines of 20 of debug", n)
		}
		// Ten thousand different lines do not fill the memory.
		for i := range 10_000 {
			log.Info(fmt.Sprint("line ", i))
		}
		if n := len(log.Handler().(damper).past.lines); n > repeatLines {
			t.Errorf("%d lines remembered", n)
		}
	})
}

// TestLogElsewhere: who gets the lines too gets those that pass, with their levels, and a text without its time.
func TestLogElsewhere(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out paper
		var got []string
		log, err := NewLog(&out, format, "info", func(l slog.Level, line string) { got = append(got, l.String()+" "+line) })
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("not said")
		for range 9 {
			log.With("peer", "n2").Error("it is broken")
		}
		log.Warn("it is late")
		if lines := out.lines(); len(lines) != repeatBurst+1 || len(got) != len(lines) ||
			!strings.HasPrefix(got[0], "ERROR ") || !strings.HasPrefix(got[repeatBurst], "WARN ") {
			t.Fatalf("%q and elsewhere %q", lines, got)
		}
		_, text, _ := strings.Cut(got[0], " ")
		if strings.ContainsRune(text, '\n') || format == "text" && text != `level=ERROR msg="it is broken" peer=n2` ||
			format == "json" && !strings.HasPrefix(text, `{"time":`) {
			t.Errorf("%q", text)
		}
	}
}

func TestLogLevel(t *testing.T) {
	var out paper
	log, err := NewLog(&out, "json", "warn", nil)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	log.Handle(mux)
	ask := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	if code, text := ask("GET", "/log-level"); code != 200 || text != "warn" {
		t.Errorf("%d %s", code, text)
	}
	log.Info("not said")
	if code, text := ask("POST", "/log-level?level=debug"); code != 200 || text != "debug" {
		t.Errorf("%d %s", code, text)
	}
	log.Debug("said")
	for _, bad := range []string{"", "loud", "info%2B3"} {
		code, text := ask("POST", "/log-level?level="+bad)
		if code != 400 || !strings.Contains(text, "write debug, info, warn or error") {
			t.Errorf("%q: %d %s", bad, code, text)
		}
	}
	got := strings.Join(out.lines(), "\n")
	if strings.Contains(got, "not said") || !strings.Contains(got, `"msg":"said"`) {
		t.Errorf("the log has\n%s", got)
	}
	if _, err := NewLog(&out, "xml", "info", nil); err == nil {
		t.Error("any format is taken")
	}
}

func TestLogSignal(t *testing.T) {
	var out paper
	log, err := NewLog(&out, "text", "warn", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Whoever listens first, the signal never ends this process.
	guard := make(chan os.Signal, 1)
	signal.Notify(guard, syscall.SIGUSR1)
	defer signal.Stop(guard)
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.FollowSignals(ctx) }()
	reached := func(want slog.Level, within time.Duration) bool {
		for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if log.level.Level() == want {
				return true
			}
		}
		return false
	}
	send := func() {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
	}
	// The first may come before it is listened for.
	for tries := 0; ; tries++ {
		send()
		if reached(slog.LevelDebug, time.Second) {
			break
		}
		if tries == 30 {
			t.Fatal("SIGUSR1 does not switch to debug")
		}
	}
	send()
	if !reached(slog.LevelWarn, 30*time.Second) {
		t.Error("SIGUSR1 does not switch back")
	}
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Who looks for errors in the log looks for one word.
func TestLogNamesErrorsAlike(t *testing.T) {
	attribute := regexp.MustCompile(`"(err|e|cause)", err\b`)
	seen := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		seen += strings.Count(string(text), `"error", err`)
		if found := attribute.Find(text); found != nil {
			t.Errorf("%s: %s; name the attribute error", path, found)
		}
		return err
	})
	if err != nil || seen == 0 {
		t.Errorf("%d lines looked at: %v", seen, err)
	}
}
