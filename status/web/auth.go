package web

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
)

// An auth decides who may look. A refusal says nothing of what is behind it, and does not repeat the request.
type auth struct {
	users map[string]string // name → bcrypt hash
	token string
	hosts []string
	// anyHost is for a unix socket, which no browser reaches by a host name.
	anyHost bool
	// posts is the one path that takes forms; empty: none does.
	posts string

	guesses *guesses
	salt    []byte
	mu      sync.Mutex
	known   map[string]bool // credentials that were right, by their HMAC
}

// contentSecurityPolicy allows the page what it is made of, and nothing from elsewhere.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// maxKnown bounds the credentials that are remembered.
const maxKnown = 64

func newAuth(users map[string]string, token string, hosts []string) *auth {
	a := &auth{
		users: users, token: token, hosts: hosts, salt: make([]byte, 32), known: make(map[string]bool),
		guesses: newGuesses(),
	}
	rand.Read(a.salt)
	return a
}

// checked refuses requests that no honest browser or scraper sends.
func (a *auth) checked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		isForm := r.Method == http.MethodPost && a.posts != "" && r.URL.Path == a.posts
		switch {
		case !isForm && r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "nothing can be changed here; use the appliance command on the node",
				http.StatusMethodNotAllowed)
		case !isForm && r.ContentLength != 0:
			h.Set("Connection", "close")
			http.Error(w, "send the request without a body", http.StatusRequestEntityTooLarge)
		case !a.anyHost && !a.knowsHost(r.Host):
			http.Error(w, "this host does not know that name as its own; add it to admin.hosts",
				http.StatusMisdirectedRequest)
		case r.Header.Get("Sec-Fetch-Site") == "cross-site" && (isForm || r.Header.Get("Sec-Fetch-Mode") != "navigate"):
			http.Error(w, "not for other sites", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// knowsHost stops DNS rebinding, in which another site's name suddenly resolves to this address. Such a site can use
// neither our own names nor an address as its name.
func (a *auth) knowsHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "localhost" || slices.Contains(a.hosts, host) {
		return true
	}
	literal := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	_, err := netip.ParseAddr(literal)
	return err == nil
}

// open reports whether nobody needs credentials.
func (a *auth) open() bool { return len(a.users) == 0 && a.token == "" }

// required passes on requests with valid credentials.
func (a *auth) required(next http.Handler) http.Handler {
	if a.open() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch a.judge(r) {
		case allowed:
			next.ServeHTTP(w, r)
		case tooMany:
			w.Header().Set("Retry-After", "2")
			http.Error(w, "too many wrong passwords; wait a moment", http.StatusTooManyRequests)
		default:
			if len(a.users) > 0 {
				w.Header().Add("WWW-Authenticate", `Basic realm="appliance", charset="UTF-8"`)
			}
			if a.token != "" {
				w.Header().Add("WWW-Authenticate", `Bearer realm="appliance"`)
			}
			http.Error(w, "a user name and password or a token is required", http.StatusUnauthorized)
		}
	})
}

// judgement is what becomes of a request with or without credentials.
type judgement int

const (
	refused judgement = iota
	allowed
	tooMany // wrong passwords: this one was not looked at
)

// judge checks the credentials of r.
func (a *auth) judge(r *http.Request) judgement {
	if token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); found && a.token != "" {
		want, got := sha256.Sum256([]byte(a.token)), sha256.Sum256([]byte(token))
		if subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
			return allowed
		}
		return refused // nobody guesses a token
	}
	name, password, found := r.BasicAuth()
	if !found || len(a.users) == 0 {
		return refused
	}
	mac := hmac.New(sha256.New, a.salt)
	mac.Write([]byte(name + "\x00" + password))
	sum := string(mac.Sum(nil))
	a.mu.Lock()
	known := a.known[sum]
	a.mu.Unlock()
	if known {
		return allowed
	}
	if len(password) > 72 { // bcrypt takes no more
		return refused
	}
	done, ok := a.guesses.wait(r.RemoteAddr)
	if !ok {
		return tooMany
	}
	right := false
	defer func() { done(right) }()
	hash, exists := a.users[name]
	if !exists { // take as long as for a user that exists
		for _, hash = range a.users {
			break
		}
	}
	if bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) != nil || !exists {
		return refused
	}
	right = true
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxKnown {
		clear(a.known)
	}
	a.known[sum] = true
	return allowed
}
