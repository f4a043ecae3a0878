package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"appliance/configs"
)

// A logbook is where the program's lines go, and how many.
type logbook struct {
	*slog.Logger
	level      slog.LevelVar
	configured slog.LevelVar
}

// newLogbook writes text or JSON lines of at least the configured level.
func newLogbook(w io.Writer, cfg configs.Log) (*logbook, error) {
	b := &logbook{}
	if err := b.configured.UnmarshalText([]byte(cfg.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	b.level.Set(b.configured.Level())
	options := &slog.HandlerOptions{Level: &b.level}
	var h slog.Handler
	switch cfg.Format {
	case "text":
		h = slog.NewTextHandler(w, options)
	case "json":
		h = slog.NewJSONHandler(w, options)
	default:
		return nil, errors.New("log.format: write text or json")
	}
	b.Logger = slog.New(newCalm(h))
	return b, nil
}

// set changes the level until the process ends.
func (b *logbook) set(word string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(word)); err != nil || strings.ContainsAny(word, "+-") {
		return fmt.Errorf("there is no level %q; write debug, info, warn or error", word)
	}
	b.level.Set(l)
	b.Info("log level set", "level", strings.ToLower(l.String()))
	return nil
}

// reconfigure follows a changed configuration. What was set by hand stays while
// the configuration says what it said before.
func (b *logbook) reconfigure(word string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(word)); err != nil {
		return fmt.Errorf("log.level: %w", err)
	}
	if l != b.configured.Level() {
		b.configured.Set(l)
		b.level.Set(l)
	}
	return nil
}

// followSignals makes SIGUSR1 switch between debug and the configured level, for
// those who have nothing but kill.
func (b *logbook) followSignals(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			to := slog.LevelDebug
			if b.level.Level() == to {
				to = b.configured.Level()
			}
			b.level.Set(to)
			b.Info("log level set by SIGUSR1", "level", strings.ToLower(to.String()))
		}
	}
}

// handle answers GET and POST /log-level on the root-only socket.
func (b *logbook) handle(mux *http.ServeMux) {
	mux.HandleFunc("GET /log-level", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, strings.ToLower(b.level.Level().String()))
	})
	mux.HandleFunc("POST /log-level", func(w http.ResponseWriter, r *http.Request) {
		if err := b.set(r.URL.Query().Get("level")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, strings.ToLower(b.level.Level().String()))
	})
}

const (
	// A line may come calmBurst times in calmSpan; then it is counted until the
	// span is over. An error that comes with every packet or every round must not
	// fill the disk, and must not hide the others.
	calmSpan  = time.Minute
	calmBurst = 5
	// calmLines bounds the memory of which lines there were.
	calmLines = 512
)

// calm passes records on, but for those that repeat themselves. Debug is for
// somebody who wants to see everything.
type calm struct {
	slog.Handler
	context string // of WithAttrs and WithGroup
	past    *repeats
}

type repeats struct {
	mu    sync.Mutex
	lines map[string]*repeated
}

type repeated struct {
	since   time.Time
	count   int
	dropped int
}

func newCalm(h slog.Handler) calm {
	return calm{Handler: h, past: &repeats{lines: make(map[string]*repeated)}}
}

// Handle implements slog.Handler.
func (c calm) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return c.Handler.Handle(ctx, r)
	}
	var key strings.Builder
	fmt.Fprintf(&key, "%s %d %s", c.context, r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&key, " %s=%s", a.Key, a.Value)
		return true
	})
	pass, dropped := c.past.count(key.String(), r.Time)
	if !pass {
		return nil
	}
	if dropped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("repeated", dropped))
	}
	return c.Handler.Handle(ctx, r)
}

// count notes a line; dropped is how many like it were held back before.
func (p *repeats) count(key string, now time.Time) (pass bool, dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lines[key]
	if l == nil {
		if len(p.lines) >= calmLines {
			for k, old := range p.lines {
				if now.Sub(old.since) >= calmSpan {
					delete(p.lines, k)
				}
			}
			if len(p.lines) >= calmLines {
				return true, 0 // so many different lines are a story, not a repetition
			}
		}
		l = &repeated{since: now}
		p.lines[key] = l
	}
	if now.Sub(l.since) >= calmSpan {
		dropped = l.dropped
		*l = repeated{since: now}
	}
	l.count++
	if l.count > calmBurst {
		l.dropped++
		return false, 0
	}
	return true, dropped
}

// WithAttrs implements slog.Handler.
func (c calm) WithAttrs(attrs []slog.Attr) slog.Handler {
	return calm{c.Handler.WithAttrs(attrs), fmt.Sprint(c.context, attrs), c.past}
}

// WithGroup implements slog.Handler.
func (c calm) WithGroup(name string) slog.Handler {
	return calm{c.Handler.WithGroup(name), c.context + "." + name, c.past}
}
