package web

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"path"
	"strconv"
	"time"

	"appliance/status"
	"appliance/status/journal"
)

// AdminConfig says what the admin listener shows, and to whom.
type AdminConfig struct {
	Snapshot func() status.Snapshot
	Page     *Page
	Journal  *journal.Journal
	Metrics  http.Handler
	// Path is where the page is served; empty means /.
	Path string
	// Hosts are the names by which browsers may address this node, besides its addresses and localhost.
	Hosts []string
	// Users are names with the bcrypt hashes of their passwords, Token is a bearer token. Without either, everybody who
	// reaches the listener may look.
	Users       map[string]string
	Token       string
	HideVersion bool
	// Orders, if not nil, is what users may order; without Users nobody may.
	Orders *PageOrders
	// Unix is for a unix socket: whoever may open it may look, by any host name.
	Unix bool
}

// Admin serves:
//
//	/ or Path     the page; below it page.css, page.js, live (server-sent), and with Orders operate
//	/status.json  this node's snapshot
//	/events       the journal as server-sent events; /events.json lists it
//	/metrics      for Prometheus
//	/healthz      200 while the process answers; /livez the same
//	/readyz       200 if this node could serve the VIPs now, else 503
//
// Probes need no credentials; without them the answer is only yes or no.
func Admin(cfg AdminConfig) http.Handler {
	a := newAuth(cfg.Users, cfg.Token, cfg.Hosts)
	if cfg.Unix {
		a = newAuth(nil, "", nil)
		a.anyHost = true
	}
	epoch := strconv.FormatInt(time.Now().UnixNano(), 36)
	operates := cfg.Orders != nil && len(cfg.Users) > 0 && !cfg.Unix
	s := &streams{page: cfg.Page, journal: cfg.Journal, epoch: epoch, operates: operates}
	base := path.Clean("/" + cfg.Path)
	if base != "/" {
		base += "/"
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", alive)
	mux.HandleFunc("GET /healthz", alive)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ready(w, cfg.Snapshot(), a.open() || a.judge(r) == allowed)
	})
	guard := func(pattern string, h http.HandlerFunc) { mux.Handle("GET "+pattern, a.required(h)) }
	snapshot := func(w http.ResponseWriter, _ *http.Request) {
		v := cfg.Snapshot()
		if cfg.HideVersion {
			v.Version = ""
			for i := range v.Group.Peers {
				v.Group.Peers[i].Version = ""
			}
			for i := range v.Group.Workers {
				v.Group.Workers[i].Version = ""
			}
		}
		w.Header().Set("Cache-Control", "no-store")
		writeJSON(w, v)
	}
	guard("/status.json", snapshot)
	guard("/events", s.events)
	guard("/events.json", s.list)
	guard("/metrics", cfg.Metrics.ServeHTTP)
	guard(base+"{$}", func(w http.ResponseWriter, r *http.Request) { s.servePage(w, r, base) })
	guard(base+"live", s.live)
	if operates {
		o := newOperator(cfg.Orders, cfg.Page)
		a.posts = base + "operate"
		guard(a.posts, o.get)
		mux.Handle("POST "+a.posts, a.required(http.HandlerFunc(o.post)))
	}
	for name, kind := range map[string]string{
		"page.css": "text/css; charset=utf-8",
		"page.js":  "text/javascript; charset=utf-8",
		"icon.svg": "image/svg+xml",
	} {
		guard(base+name, asset(name, kind))
	}
	if base != "/" {
		guard(base+"status.json", snapshot)
		guard("/{$}", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, base, http.StatusFound) })
	}
	return a.checked(mux)
}

// asset serves an embedded file, which a browser may cache until it changes.
func asset(name, kind string) http.HandlerFunc {
	data, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		panic(err) // the embedded files are part of the program
	}
	sum := sha256.Sum256(data)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
	}
}
