package status

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"
)

// A gate lets in who may look. What it refuses, it refuses without telling
// what is behind it, and without repeating what was asked.
type gate struct {
	users map[string]string // name → bcrypt hash
	token string
	hosts []string
	// anyHost is for a unix socket, which no browser reaches by a name.
	anyHost bool

	// One guess at a time, and few: bcrypt is slow on purpose, and the node
	// has other work.
	guess   sync.Mutex
	guesses *rate.Limiter
	salt    []byte
	mu      sync.Mutex
	known   map[string]bool // credentials that were right, by their keyed hash
}

const (
	guessesPerSecond = 2
	guessBurst       = 10
	maxKnown         = 64
)

func newGate(users map[string]string, token string, hosts []string) *gate {
	g := &gate{
		users: users, token: token, hosts: hosts, salt: make([]byte, 32), known: make(map[string]bool),
		guesses: rate.NewLimiter(guessesPerSecond, guessBurst),
	}
	rand.Read(g.salt)
	return g
}

// polite refuses what no browser or scraper of ours would send.
func (g *gate) polite(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "nothing can be changed here; use the appliance command on the node", http.StatusMethodNotAllowed)
		case r.ContentLength != 0:
			h.Set("Connection", "close")
			http.Error(w, "a request without a body is enough", http.StatusRequestEntityTooLarge)
		case !g.anyHost && !g.knows(r.Host):
			http.Error(w, "this address is not known by that name; add the name to admin.hosts", http.StatusMisdirectedRequest)
		case r.Header.Get("Sec-Fetch-Site") == "cross-site" && r.Header.Get("Sec-Fetch-Mode") != "navigate":
			http.Error(w, "not for other sites", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// knows stops DNS rebinding: a page of somebody else's whose name suddenly
// means this address. A name of ours it cannot take, and an address is none.
func (g *gate) knows(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || slices.Contains(g.hosts, host) {
		return true
	}
	literal := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(literal)
	return err == nil
}

// open is whether nobody has to say who they are.
func (g *gate) open() bool { return len(g.users) == 0 && g.token == "" }

// guarded asks who is there.
func (g *gate) guarded(next http.Handler) http.Handler {
	if g.open() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ok, tried := g.admits(r)
		switch {
		case ok:
			next.ServeHTTP(w, r)
		case tried && !g.patient():
			w.Header().Set("Retry-After", "5")
			http.Error(w, "too many wrong passwords; wait a moment", http.StatusTooManyRequests)
		default:
			if len(g.users) > 0 {
				w.Header().Add("WWW-Authenticate", `Basic realm="appliance", charset="UTF-8"`)
			}
			if g.token != "" {
				w.Header().Add("WWW-Authenticate", `Bearer realm="appliance"`)
			}
			http.Error(w, "say who you are", http.StatusUnauthorized)
		}
	})
}

// patient is whether there were few enough wrong guesses to answer as usual.
func (g *gate) patient() bool { return g.guesses.Tokens() >= 1 }

// admits checks the credentials of r; tried is whether there were any.
func (g *gate) admits(r *http.Request) (ok, tried bool) {
	if token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); found && g.token != "" {
		want, got := sha256.Sum256([]byte(g.token)), sha256.Sum256([]byte(token))
		return subtle.ConstantTimeCompare(want[:], got[:]) == 1, true
	}
	name, password, found := r.BasicAuth()
	if !found || len(g.users) == 0 {
		return false, false
	}
	mac := hmac.New(sha256.New, g.salt)
	mac.Write([]byte(name + "\x00" + password))
	sum := string(mac.Sum(nil))
	g.mu.Lock()
	known := g.known[sum]
	g.mu.Unlock()
	if known {
		return true, true
	}
	if len(password) > 72 || !g.guesses.Allow() { // bcrypt takes no more
		return false, true
	}
	g.guess.Lock()
	defer g.guess.Unlock()
	hash, exists := g.users[name]
	if !exists { // as slow as for a user that exists
		for _, hash = range g.users {
			break
		}
	}
	if bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) != nil || !exists {
		return false, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.known) >= maxKnown {
		clear(g.known)
	}
	g.known[sum] = true
	return true, true
}
