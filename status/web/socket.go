package web

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"appliance/status"
)

// Handler serves a snapshot to whoever may open the root-only socket:
//
//	GET /status.json  the snapshot
//	GET /livez        200 while the process answers at all
//	GET /readyz       200 if this node could serve the VIPs now, else 503 with the reasons
func Handler(snapshot func() status.Snapshot) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, snapshot()) })
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { ready(w, snapshot(), true) })
	return mux
}

// alive answers that the process answers.
func alive(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprintln(w, "ok")
}

// ready answers whether the node could serve, with the reasons against it if they may be told.
func ready(w http.ResponseWriter, s status.Snapshot, tell bool) {
	if len(s.NotReady) == 0 {
		alive(w, nil)
		return
	}
	reasons := []string{"not ready"}
	if tell {
		reasons = s.NotReadyTexts()
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, strings.Join(reasons, "\n"), http.StatusServiceUnavailable)
}

// ListenUnix opens the root-only socket at path. It replaces a socket that a crashed run left there; a socket on which
// somebody listens is an error.
func ListenUnix(path string) (net.Listener, error) { return listenUnix(path, 0o600) }

func listenUnix(path string, mode os.FileMode) (net.Listener, error) {
	dir := filepath.Dir(path)
	_, missing := os.Stat(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("socket %s: %w; make the directory or set socket to another path", path, err)
	}
	if missing != nil && mode&0o070 != 0 { // its group has to get there
		if err := os.Chmod(dir, 0o755); err != nil {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("socket %s: another appliance listens there; "+
			"stop it, or give this one its own socket and dataDir", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("socket %s: a file that is not a socket is there; "+
				"remove it or set socket to another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket %s: cannot remove what an earlier run left: %w", path, err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w; set socket to a writable path", path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// faults are the lines that the server logs: those of handlers that panicked. What strangers send says nothing about our
// state, and would fill the log.
type faults struct{ log *slog.Logger }

func (f faults) Write(line []byte) (int, error) {
	if text, is := strings.CutPrefix(string(line), "http: panic serving "); is {
		f.log.Error("a request was ended by a fault of this program; please report it", "error", text)
	}
	return len(line), nil
}

// Serve answers requests on l with h until ctx ends, and closes l. A handler that panics ends its request only.
func Serve(ctx context.Context, l net.Listener, h http.Handler, told *slog.Logger) error {
	srv := &http.Server{
		Handler: h,
		// Slow readers and writers are cut off; a snapshot is a few kilobytes. Streams set the time for each of their
		// writes themselves.
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   30 * time.Second,
		IdleTimeout:    30 * time.Second,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       log.New(faults{told}, "", 0),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
