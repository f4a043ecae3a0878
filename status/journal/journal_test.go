package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/status"
)

func QuietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run runs a journal in dir during f, with at most most bytes per file.
func run(t *testing.T, dir string, most int64, f func(j *Journal)) {
	t.Helper()
	j := Open(dir, "n1", QuietLog())
	j.max = most
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	f(j)
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func whats(events []status.Event) (out []string) {
	for _, e := range events {
		out = append(out, fmt.Sprintf("%d %s", e.Seq, e.What))
	}
	return out
}

func TestJournalSurvives(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, maxFile, func(j *Journal) {
		j.Add(status.Event{Kind: status.OfProcess, What: "a"})
		j.Add(status.Event{Kind: status.OfProcess, What: "b"})
	})
	// As if a crash had cut the last line short.
	path := filepath.Join(dir, fileName)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"seq":3,"time":"2026-`)
	f.Close()
	run(t, dir, maxFile, func(j *Journal) {
		j.Add(status.Event{Kind: status.OfProcess, What: "c"})
		events, _ := j.Since(0)
		if got := strings.Join(whats(events), ", "); got != "1 a, 2 b, 3 c" {
			t.Errorf("in memory: %s", got)
		}
	})
	events, err := Read(dir)
	if got := strings.Join(whats(events), ", "); err != nil || got != "1 a, 2 b, 3 c" {
		t.Errorf("on disk: %s, %v", got, err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v", info.Mode())
	}
}

// waiting reports whether events are still to be written.
func waiting(j *Journal) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.pending) > 0
}

func TestJournalIsBounded(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, 10_000, func(j *Journal) {
		for i := range 2000 {
			j.Add(status.Event{Kind: status.OfBackend, What: strings.Repeat("x", 50), Subject: fmt.Sprint(i)})
			for i%100 == 99 && waiting(j) { // the disk has its turn
				time.Sleep(time.Millisecond)
			}
		}
		if events, _ := j.Since(0); len(events) != keptInMemory || events[len(events)-1].Subject != "1999" {
			t.Errorf("%d events in memory", len(events))
		}
		if events, _ := j.Since(1995); len(events) != 5 {
			t.Errorf("%d events since 1995", len(events))
		}
	})
	var total int64
	files, _ := os.ReadDir(dir)
	for _, f := range files {
		info, _ := f.Info()
		total += info.Size()
	}
	if len(files) != 2 || total > 20_000 {
		t.Errorf("%d bytes in %d files", total, len(files))
	}
	events, err := Read(dir)
	if err != nil || len(events) == 0 || events[len(events)-1].Subject != "1999" {
		t.Errorf("%d events, %v", len(events), err)
	}
	for i := 1; i < len(events); i++ {
		if events[i].Seq <= events[i-1].Seq {
			t.Fatal("out of order")
		}
	}
}

// If the disk fails, the events on it are lost, and nothing else.
func TestJournalWithoutDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, maxFile, func(j *Journal) {
		for range 3000 {
			j.Add(status.Event{Kind: status.OfProcess, What: "a"})
		}
		if events, _ := j.Since(0); len(events) != keptInMemory {
			t.Errorf("%d events in memory", len(events))
		}
	})
}

func TestJournalTells(t *testing.T) {
	j := Open(t.TempDir(), "n1", QuietLog())
	_, changed := j.Since(0)
	select {
	case <-changed:
		t.Fatal("changed by nothing")
	default:
	}
	j.Add(status.Event{What: "a"})
	<-changed
}

func TestReadNoJournal(t *testing.T) {
	if _, err := Read(t.TempDir()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("got %v", err)
	}
}

// Whatever is on disk, reading it does not panic, and good lines survive bad ones.
func FuzzReadJournal(f *testing.F) {
	f.Add([]byte("{}\n"), "")
	f.Add([]byte(`{"seq":1,"time":"2026-01-01T00:00:00Z","what":"x"}`), "")
	f.Add([]byte(strings.Repeat("x", MaxEvent+10)), "")
	f.Fuzz(func(t *testing.T, data []byte, _ string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		events, _ := Read(dir)
		for _, e := range events {
			if e.Time.IsZero() {
				t.Error("an event without a time")
			}
		}
	})
}
