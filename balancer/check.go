package balancer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer/exchange"
	"appliance/balancer/rawtcp"
)

// The types of checks.
const (
	CheckTCP   = "tcp"   // a connection opens
	CheckTLS   = "tls"   // and a TLS handshake succeeds
	CheckHTTP  = "http"  // a request in clear is answered as expected
	CheckHTTPS = "https" // the same over TLS
	CheckNone  = "none"  // always healthy

	// These talk over a connection: Steps, or the beginning of a well-known protocol.
	CheckExchange = "exchange"
	CheckRedis    = "redis"
	CheckSMTP     = "smtp"
	CheckMySQL    = "mysql"
	CheckPgSQL    = "pgsql"
	CheckLDAP     = "ldap"

	// CheckProgram runs Exec. Only a Checker that somebody else makes can do that.
	CheckProgram = "program"
)

// MinProgramInter is the shortest time between two runs of a program: each is a process more.
const MinProgramInter = time.Second

// The defaults of a Check, which are in force where a field is zero. The
// configuration file has the same.
const (
	// DefaultCheckType and DefaultCheckPath are how a kube-apiserver says early
	// that it is about to stop.
	DefaultCheckType = CheckHTTPS
	DefaultCheckPath = "/readyz"
	// DefaultCheckMethod is what every server knows.
	DefaultCheckMethod = "GET"
	// DefaultInter and DefaultFall find a vanished server within about a
	// second. One lost packet is no reason to take a server out.
	DefaultInter = 500 * time.Millisecond
	DefaultFall  = 2
	// DefaultRise: a server that is just starting may answer once and fall over.
	DefaultRise = 2
	// DefaultHello is haproxy's: every server of SMTP knows it (RFC 5321, section 4.1.1.1).
	DefaultHello = "HELO localhost"
	// DefaultStatus stands alone: 401 and 403 are also what a server answers
	// that is not ready yet.
	DefaultStatus = 200
)

// maxTimeout bounds the default Timeout: a day, like the longest Inter.
const maxTimeout = 24 * time.Hour

// A Check says how the health of a backend is found out. The zero Check suits a
// kube-apiserver: https GET /readyz, answered with 200.
type Check struct {
	// Type is one of the types above.
	Type string
	// Inter is the time from the start of one check of a backend to the start
	// of the next. DownInter is the same for a backend that is down; zero means
	// Inter. FastInter is the same while the state is about to change, and after
	// a connection failed; zero means a twentieth of Inter, at least 50 ms.
	Inter, FastInter, DownInter time.Duration
	// Timeout bounds one check; zero means DefaultTimeout. Connection and TLS
	// handshake have no more than Inter of it, so that a server that vanished is
	// found out before one that is only slow to answer.
	Timeout time.Duration
	// Rise successes in a row make a backend healthy, Fall failures in a row
	// make it unhealthy. Both are at least 1. The very first check decides alone.
	Rise, Fall int
	// Port is the port that is checked, and Address the host; zero means the backend's own.
	Port    uint16
	Address netip.Addr
	// SendProxy begins the connection with a PROXY header of this version, v1 or v2, that names no client. Empty sends
	// none.
	SendProxy string

	// The request of http and https. An empty Host means the backend's address.
	Method, Path, Host string
	Headers            []Header
	// BearerTokenFile is read again whenever it changes.
	BearerTokenFile string
	Expect          Expect
	TLS             TLSOptions

	// Steps are the conversation of exchange; User is who logs in to mysql and pgsql, without a password, and Hello how
	// the check introduces itself to smtp.
	Steps       []CheckStep
	User, Hello string

	// Exec is a program with its arguments, which ends with 0 if the backend is healthy, and then User is who runs it.
	Exec []string
}

// A CheckStep is one step of a conversation.
type CheckStep = exchange.TalkStep

// A Header is one header line of a request.
type Header struct{ Name, Value string }

// Expect is what the answer of a healthy server looks like.
type Expect struct {
	// Status are the codes of a healthy server; none means DefaultStatus alone.
	Status []StatusRange
	// Contains is a text and Matches a regular expression (RE2) that must be
	// found in the first 64 KiB of the body. Empty accepts any body.
	Contains, Matches string
	// Absent and Mismatches are those that must not be found there.
	Absent, Mismatches string
}

// A StatusRange is all status codes from First to Last, both included.
type StatusRange struct{ First, Last int }

// TLSOptions say whom a check trusts, and with which certificate it comes.
type TLSOptions struct {
	// On has the types that talk do so over TLS.
	On bool
	// Verify holds the server's certificate against CAFile, or against the
	// host's own CAs where CAFile is empty.
	Verify bool
	CAFile string
	// ServerName is the name that the certificate must have, and that the
	// handshake asks for; empty means the backend's address.
	ServerName string
	// Pin is the SHA-256 of the server's public key (SubjectPublicKeyInfo) in
	// base64. It may stand in for a CA.
	Pin string
	// CertFile and KeyFile are the client's certificate.
	CertFile, KeyFile string
}

// String is the check for people, such as https GET /readyz at port 8443. The query of a path may have secrets, and is
// left out.
func (c Check) String() string {
	text := c.Type
	switch {
	case c.Requests():
		path, _, cut := strings.Cut(c.Path, "?")
		if cut {
			path += "?..."
		}
		text += " " + c.Method + " " + path
	case c.Type == CheckExchange:
		text += fmt.Sprintf(" of %d steps", len(c.Steps))
	case c.Type == CheckProgram && len(c.Exec) > 0:
		text += " " + c.Exec[0] // arguments may be secret
	}
	if c.Talks() && c.TLS.On {
		text += " over TLS"
	}
	switch {
	case c.Type == CheckNone:
	case c.Address.IsValid() && c.Port != 0:
		text += " at " + netip.AddrPortFrom(c.Address, c.Port).String()
	case c.Address.IsValid():
		text += " at " + c.Address.String()
	case c.Port != 0:
		text += fmt.Sprintf(" at port %d", c.Port)
	}
	return text
}

// Requests reports whether the check sends a request and reads the answer.
func (c Check) Requests() bool { return c.Type == CheckHTTP || c.Type == CheckHTTPS }

// Talks reports whether the check holds a conversation other than HTTP.
func (c Check) Talks() bool {
	switch c.Type {
	case CheckExchange, CheckRedis, CheckSMTP, CheckMySQL, CheckPgSQL, CheckLDAP:
		return true
	}
	return false
}

// DefaultTimeout is the Timeout of a check that has none: Inter, and four times
// as long for one that waits for an answer, because a slow etcd can hold an
// apiserver's answer for a second.
func (c Check) DefaultTimeout() time.Duration {
	if c.Requests() || c.Talks() {
		return min(4*c.Inter, maxTimeout)
	}
	return c.Inter
}

// withDefaults fills in the fields that are zero, and refuses a check that
// cannot work.
func (c Check) withDefaults() (Check, error) {
	c.Type = cmp.Or(c.Type, DefaultCheckType)
	c.Inter = cmp.Or(c.Inter, DefaultInter)
	c.Timeout = cmp.Or(c.Timeout, c.DefaultTimeout())
	c.Rise, c.Fall = cmp.Or(c.Rise, DefaultRise), cmp.Or(c.Fall, DefaultFall)
	shortest := 50 * time.Millisecond
	if c.Type == CheckProgram {
		shortest = MinProgramInter
	}
	c.FastInter = cmp.Or(c.FastInter, min(c.Inter, max(c.Inter/20, shortest)))
	c.DownInter = cmp.Or(c.DownInter, c.Inter)
	if c.Inter < 0 || c.Timeout < 0 || c.FastInter < 0 || c.DownInter < 0 || c.Rise < 0 || c.Fall < 0 {
		return c, fmt.Errorf("check %s has a negative number: write a positive one or leave it out", c.Type)
	}
	c.Method, c.Path = cmp.Or(c.Method, DefaultCheckMethod), cmp.Or(c.Path, DefaultCheckPath)
	if len(c.Expect.Status) == 0 {
		c.Expect.Status = []StatusRange{{DefaultStatus, DefaultStatus}}
	}
	if !strings.HasPrefix(c.Path, "/") {
		return c, fmt.Errorf("check path %q: begin it with /", c.Path)
	}
	for name, pattern := range map[string]string{"matches": c.Expect.Matches, "mismatches": c.Expect.Mismatches} {
		if _, err := regexp.Compile(pattern); err != nil {
			return c, fmt.Errorf("check expect.%s: %w; write a regular expression of RE2", name, err)
		}
	}
	if _, err := c.TLS.PinHash(); err != nil {
		return c, fmt.Errorf("check tls.pin is no SHA-256 in base64: print one with `%s`", PinCommand)
	}
	return c, nil
}

// PinCommand prints a Pin.
const PinCommand = "openssl x509 -pubkey -noout -in server.crt | openssl pkey -pubin -outform der | " +
	"openssl dgst -sha256 -binary | base64"

// PinHash is the hash in Pin, or nil if there is none. The error says that Pin is
// not a SHA-256 in base64.
func (t TLSOptions) PinHash() ([]byte, error) {
	if t.Pin == "" {
		return nil, nil
	}
	hash, err := base64.StdEncoding.DecodeString(t.Pin)
	if err == nil && len(hash) != sha256.Size {
		err = fmt.Errorf("%d bytes are not a SHA-256", len(hash))
	}
	return hash, err
}

// At is the address at which b is checked.
func (c Check) At(b Backend) netip.AddrPort {
	host := b.Addr.Addr()
	if c.Address.IsValid() {
		host = c.Address
	}
	return netip.AddrPortFrom(host, cmp.Or(c.Port, b.Addr.Port()))
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

// A Checker checks a backend once, and ends when ctx does. It returns nil when the
// backend can serve, an error that wraps ErrDraining when the backend wants no new
// connections, a *Mismatch when the check itself may be the wrong one, and any
// other error when the backend cannot serve.
type Checker interface {
	Check(ctx context.Context, b Backend) error
}

// A Mismatch is the answer of a server that is alive but does not speak what the
// check expects.
type Mismatch struct {
	// Saw is what the server did.
	Saw string
	// Write is the line of configuration that fits such a server.
	Write string
}

func (m *Mismatch) Error() string { return m.Saw + "; if that is how this server is, write " + m.Write }

// NewChecker is the Checker for c. It reads the files that c names.
func NewChecker(c Check) (Checker, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case CheckNone:
		return None{}, nil
	case CheckTCP:
		return TCP{Port: c.Port, Address: c.Address}, nil
	case CheckTLS:
		return newTLSChecker(c)
	case CheckHTTP, CheckHTTPS:
		return newHTTPChecker(c)
	}
	if c.Talks() {
		return newTalkChecker(c)
	}
	if c.Type == CheckProgram {
		return nil, errors.New("no program can be run for a check here; use another type")
	}
	return nil, fmt.Errorf("check type %q is unknown: use tcp, tls, http, https, exchange, redis, smtp, mysql, pgsql, "+
		"ldap or none", c.Type)
}

// talkChecker checks that a server says what it has to.
type talkChecker struct {
	check  Check
	tls    *tlsDialer // nil: in clear
	script *exchange.Script
}

func newTalkChecker(c Check) (t *talkChecker, err error) {
	t = &talkChecker{check: c}
	switch c.Type {
	case CheckRedis:
		t.script = exchange.Redis()
	case CheckSMTP:
		t.script = exchange.SMTP(cmp.Or(c.Hello, DefaultHello))
	case CheckMySQL:
		t.script = exchange.MySQL(c.User)
	case CheckPgSQL:
		t.script = exchange.PostgreSQL(c.User)
	case CheckLDAP:
		t.script = exchange.LDAP()
	default:
		if t.script, err = exchange.New(c.Steps); err != nil {
			return nil, fmt.Errorf("check steps: %w", err)
		}
	}
	if c.TLS.On {
		t.tls, err = newTLSDialer(c.TLS)
	}
	return t, err
}

// Check implements Checker.
func (t *talkChecker) Check(ctx context.Context, b Backend) error {
	conn, err := t.check.connect(ctx, b, t.tls)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = t.script.Run(conn)
	if foreign := (*exchange.OtherProtocol)(nil); errors.As(err, &foreign) {
		return &Mismatch{foreign.Saw, "check: {type: tcp}"}
	}
	return err
}

// connect opens the connection to b, with its TLS handshake if there is one. Both have Inter at most.
func (c Check) connect(ctx context.Context, b Backend, over *tlsDialer) (net.Conn, error) {
	ctx, cancel := withTimeout(ctx, c.Inter)
	defer cancel()
	at := c.At(b)
	conn, err := c.dial(ctx, at)
	if err != nil || over == nil {
		return conn, err
	}
	client, err := over.handshake(ctx, conn, at)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return client, nil
}

// None considers every backend healthy.
type None struct{}

// Check implements Checker.
func (None) Check(context.Context, Backend) error { return nil }

// TCP checks that a connection opens. The server does not notice.
//
// A TLS server logs a handshake error for every connection that closes without a
// byte. So the check holds back the last ACK of the TCP handshake (RFC 9293,
// section 3.5) and sends a reset instead: the server's kernel has shown that it
// listens and has room in its queue, but never hands the connection to accept.
// The reset leaves no TIME_WAIT either.
type TCP struct {
	// Port is the port that is checked, and Address the host; zero means the backend's own.
	Port    uint16
	Address netip.Addr
}

// Check implements Checker.
func (t TCP) Check(ctx context.Context, b Backend) error {
	return dialError(rawtcp.Handshake(ctx, Check{Port: t.Port, Address: t.Address}.At(b)))
}

// dial opens a connection to the server, and sends the PROXY header if there is to be one.
func (c Check) dial(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1} // the connection is too short for it
	conn, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, dialError(err)
	}
	if header := proxyHeaders[c.SendProxy]; header != "" {
		if _, err := io.WriteString(conn, header); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// proxyHeaders are those of a sender that speaks for nobody else (sections 2.1 and 2.2 of the PROXY protocol): v1 names
// no addresses, and v2 has the command LOCAL, version 2, family unspecified and a length of zero.
var proxyHeaders = map[string]string{
	"v1": "PROXY UNKNOWN\r\n",
	"v2": "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
}

// dialError says why a connection failed, without the addresses, which stand beside
// it anyway.
func dialError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("refuses the connection: %w", unix.ECONNREFUSED)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("does not take the connection in time")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
