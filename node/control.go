package node

import (
	"fmt"
	"net/http"

	"appliance/host"
	"appliance/status"
)

// handler answers on the root-only unix socket: what status shows, and the few
// requests that change something.
func (n *node) handler(book *host.Log, more ...func(*http.ServeMux)) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", status.Handler(n.snapshot))
	events := status.EventHandler(n.sight.journal)
	mux.Handle("GET /events", events)
	mux.Handle("GET /events.json", events)
	mux.Handle("GET /metrics", n.sight.metrics.Handler())
	book.Handle(mux)
	for _, handle := range more {
		handle(mux)
	}
	mux.HandleFunc("POST /transfer", func(w http.ResponseWriter, r *http.Request) {
		to := r.URL.Query().Get("to")
		if n.group == nil {
			http.Error(w, "this is a worker, which is in no group; ask one of the peers", http.StatusConflict)
			return
		}
		if err := n.group.Transfer(r.Context(), to); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, "handed over")
	})
	return mux
}
