package host

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

	"appliance/mask"
)

// A Log is where the program's lines go. It holds back lines that repeat themselves.
type Log struct {
	*slog.Logger
	level      slog.LevelVar
	configured slog.LevelVar
}

// NewLog writes lines in the format text or json, of at least the level debug, info, warn or error. Also, if not nil,
// gets each of them, too, without the time of a text; it must not block.
func NewLog(w io.Writer, format, level string, also func(slog.Level, string)) (*Log, error) {
	b := &Log{}
	if err := b.configured.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	b.level.Set(b.configured.Level())
	if format != "text" && format != "json" {
		return nil, errors.New("log.format: write text or json")
	}
	options := slog.HandlerOptions{Level: &b.level, ReplaceAttr: withoutSecret}
	handler := func(w io.Writer) slog.Handler {
		if format == "json" {
			return slog.NewJSONHandler(w, &options)
		}
		return slog.NewTextHandler(w, &options)
	}
	h := handler(w)
	if also != nil {
		lines := &levelled{give: also}
		options.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if format == "text" && len(groups) == 0 && a.Key == slog.TimeKey { // a syslog has its own
				return slog.Attr{}
			}
			return withoutSecret(groups, a)
		}
		h = slog.NewMultiHandler(h, levelledHandler{handler(lines), lines})
	}
	b.Logger = slog.New(newDamper(h))
	return b, nil
}

// levelled gives lines on with their levels.
type levelled struct {
	give func(slog.Level, string)

	mu    sync.Mutex
	level slog.Level // of the line that is being written
}

// Write implements io.Writer. A slog.Handler calls it once for each line, while mu is held.
func (l *levelled) Write(text []byte) (int, error) {
	l.give(l.level, strings.TrimSuffix(string(text), "\n"))
	return len(text), nil
}

// levelledHandler is a handler that writes to a levelled.
type levelledHandler struct {
	slog.Handler
	to *levelled
}

// Handle implements slog.Handler.
func (h levelledHandler) Handle(ctx context.Context, r slog.Record) error {
	h.to.mu.Lock()
	defer h.to.mu.Unlock()
	h.to.level = r.Level
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h levelledHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return levelledHandler{h.Handler.WithAttrs(attrs), h.to}
}

// WithGroup implements slog.Handler.
func (h levelledHandler) WithGroup(name string) slog.Handler {
	return levelledHandler{h.Handler.WithGroup(name), h.to}
}

// withoutSecret masks what looks like a secret in a line.
func withoutSecret(_ []string, a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(mask.Text(v.String()))
	case slog.KindAny:
		switch of := v.Any().(type) {
		case error:
			a.Value = slog.StringValue(mask.Text(of.Error()))
		case []string:
			a.Value = slog.AnyValue(mask.Arguments(of))
		}
	}
	return a
}

// set changes the level until the process ends.
func (b *Log) set(word string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(word)); err != nil || strings.ContainsAny(word, "+-") {
		return fmt.Errorf("there is no level %q; write debug, info, warn or error", word)
	}
	b.level.Set(l)
	b.Info("log level set", "level", strings.ToLower(l.String()))
	return nil
}

// Reconfigure follows a changed configuration. A level that was set by hand stays until the configured level changes.
func (b *Log) Reconfigure(word string) error {
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

// FollowSignals lets SIGUSR1 switch between debug and the configured level, for those who have nothing but kill.
func (b *Log) FollowSignals(ctx context.Context) error {
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

// Handle answers GET and POST /log-level on the root-only socket.
func (b *Log) Handle(mux *http.ServeMux) {
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
	// A line may come repeatBurst times in repeatSpan; then it is only counted until the span is over. An error
	// that comes with every packet must not fill the disk and must not hide the other lines.
	repeatSpan  = time.Minute
	repeatBurst = 5
	// repeatLines is how many different lines are remembered at most.
	repeatLines = 512
)

// A damper passes records on, but for those that repeat themselves. Records of level debug always pass: who asks
// for them wants to see everything.
type damper struct {
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

func newDamper(h slog.Handler) damper {
	return damper{Handler: h, past: &repeats{lines: make(map[string]*repeated)}}
}

// Handle implements slog.Handler.
func (d damper) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelInfo {
		return d.Handler.Handle(ctx, r)
	}
	var key strings.Builder
	fmt.Fprintf(&key, "%s %d %s", d.context, r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&key, " %s=%s", a.Key, a.Value)
		return true
	})
	pass, dropped := d.past.count(key.String(), r.Time)
	if !pass {
		return nil
	}
	if dropped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("repeated", dropped))
	}
	return d.Handler.Handle(ctx, r)
}

// count notes a line and says whether it passes. dropped is how many equal lines were held back before it.
func (p *repeats) count(key string, now time.Time) (pass bool, dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.lines[key]
	if l == nil {
		if len(p.lines) >= repeatLines {
			for k, old := range p.lines {
				if now.Sub(old.since) >= repeatSpan {
					delete(p.lines, k)
				}
			}
			if len(p.lines) >= repeatLines {
				return true, 0 // so many different lines are not a repetition
			}
		}
		l = &repeated{since: now}
		p.lines[key] = l
	}
	if now.Sub(l.since) >= repeatSpan {
		dropped = l.dropped
		*l = repeated{since: now}
	}
	l.count++
	if l.count > repeatBurst {
		l.dropped++
		return false, 0
	}
	return true, dropped
}

// WithAttrs implements slog.Handler.
func (d damper) WithAttrs(attrs []slog.Attr) slog.Handler {
	return damper{d.Handler.WithAttrs(attrs), fmt.Sprint(d.context, attrs), d.past}
}

// WithGroup implements slog.Handler.
func (d damper) WithGroup(name string) slog.Handler {
	return damper{d.Handler.WithGroup(name), d.context + "." + name, d.past}
}
