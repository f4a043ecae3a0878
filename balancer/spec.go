package balancer

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"
)

// The types of checks.
const (
	CheckTCP   = "tcp"   // a connection opens
	CheckTLS   = "tls"   // and a TLS handshake succeeds
	CheckHTTP  = "http"  // and a request is answered as expected, in clear
	CheckHTTPS = "https" // the same over TLS
	CheckNone  = "none"  // always healthy
)

// A Check says how the health of a backend is found out. The zero Check is what
// a kube-apiserver wants: https GET /readyz, answered with 200.
type Check struct {
	Type string
	// Inter is the time between the starts of two checks of one backend;
	// DownInter that of one that is down, zero means Inter. FastInter is used
	// while the state is about to change and after a connection failed; zero
	// means a twentieth of Inter, at least 50 ms.
	Inter, FastInter, DownInter time.Duration
	// Timeout bounds one check. Connection and TLS handshake have no more than
	// Inter of it, so that a server that vanished is found out before one that
	// is only slow to answer.
	Timeout time.Duration
	// Rise successes in a row make a backend healthy, Fall failures in a row
	// make it unhealthy. Both are at least 1. The first check of all decides
	// alone.
	Rise, Fall int
	// Port is where the check goes; zero means the backend's own.
	Port uint16

	// The request of http and https. Empty means GET /readyz, and the
	// backend's address as host.
	Method, Path, Host string
	Headers            []Header
	// BearerTokenFile is read again whenever it changes.
	BearerTokenFile string
	Expect          Expect
	TLS             Trust
}

// A Header is one line of a request.
type Header struct{ Name, Value string }

// Expect is what an answer must be like.
type Expect struct {
	// Status are the codes of a healthy server; none means 200 alone.
	Status []StatusRange
	// Contains and Matches (a regular expression) are looked for in the first
	// 64 KiB of the body; empty means that any body will do.
	Contains, Matches string
}

// A StatusRange is a code, or all codes from the first to the last.
type StatusRange struct{ First, Last int }

// Trust says whom a check trusts and as whom it comes.
type Trust struct {
	// Verify holds the server's certificate against CAFile, or against the
	// host's own CAs where there is none.
	Verify bool
	CAFile string
	// ServerName is whom the certificate must name, and what is asked for in
	// the handshake; empty means the backend's address.
	ServerName string
	// Pin is the SHA-256 of the server's public key (SubjectPublicKeyInfo) in
	// base64; it may stand for a CA.
	Pin string
	// CertFile and KeyFile are the client's certificate.
	CertFile, KeyFile string
}

// withDefaults gives the fields that are zero their values, and refuses what
// cannot be meant.
func (c Check) withDefaults() (Check, error) {
	if c.Type == "" {
		c.Type = CheckHTTPS
	}
	// 2 s and three failures find a dead server in about 200 ms once real
	// connections fail, and within 4 s without any; one slow answer does no
	// harm.
	c.Inter = or(c.Inter, 2*time.Second)
	c.Timeout = or(c.Timeout, time.Second)
	c.Rise, c.Fall = or(c.Rise, 2), or(c.Fall, 3)
	c.FastInter = or(c.FastInter, min(c.Inter, max(c.Inter/20, 50*time.Millisecond)))
	c.DownInter = or(c.DownInter, c.Inter)
	if c.Inter < 0 || c.Timeout < 0 || c.FastInter < 0 || c.DownInter < 0 || c.Rise < 0 || c.Fall < 0 {
		return c, fmt.Errorf("check %s has a negative number: write a positive one or leave it out", c.Type)
	}
	if c.Method == "" {
		c.Method = "GET"
	}
	if c.Path == "" {
		c.Path = "/readyz"
	}
	if len(c.Expect.Status) == 0 {
		c.Expect.Status = []StatusRange{{200, 200}}
	}
	if !strings.HasPrefix(c.Path, "/") {
		return c, fmt.Errorf("check path %q: begin it with /", c.Path)
	}
	if _, err := regexp.Compile(c.Expect.Matches); err != nil {
		return c, fmt.Errorf("check expect.matches: %w; write a regular expression of RE2", err)
	}
	if _, err := c.TLS.pin(); err != nil {
		return c, err
	}
	return c, nil
}

// pin is the hash in Pin, or nil if there is none.
func (t Trust) pin() ([]byte, error) {
	if t.Pin == "" {
		return nil, nil
	}
	hash, err := base64.StdEncoding.DecodeString(t.Pin)
	if err != nil || len(hash) != 32 {
		return nil, errors.New("check tls.pin is no SHA-256 in base64: print one with " +
			"`openssl x509 -pubkey -noout -in server.crt | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64`")
	}
	return hash, nil
}

// at is where b is checked.
func (c Check) at(b Backend) netip.AddrPort {
	if c.Port != 0 {
		return netip.AddrPortFrom(b.Addr.Addr(), c.Port)
	}
	return b.Addr
}

// expects reports whether a status code is one of a healthy server.
func (e Expect) expects(code int) bool {
	for _, r := range e.Status {
		if r.First <= code && code <= r.Last {
			return true
		}
	}
	return false
}

// String writes ranges as the operator does: 200, 300-399.
func (r StatusRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}
