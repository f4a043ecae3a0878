package cli

import (
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// TestAnswers: what is started needs a moment until it answers.
func TestAnswers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	if answers(t.Context(), socket, time.Millisecond) {
		t.Fatal("nobody is there, and it is said to answer")
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) })}
	t.Cleanup(func() { srv.Close() })
	time.AfterFunc(50*time.Millisecond, func() {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Error(err)
			return
		}
		srv.Serve(l)
	})
	if !answers(t.Context(), socket, 30*time.Second) {
		t.Error("it answers, and is not waited for")
	}
}
