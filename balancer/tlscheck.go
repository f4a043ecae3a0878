package balancer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tlsChecker checks that a server completes a TLS handshake and is the expected one.
type tlsChecker struct {
	check Check
	tls   *tlsDialer
}

func newTLSChecker(c Check) (*tlsChecker, error) {
	s, err := newTLSDialer(c.TLS)
	if err != nil {
		return nil, err
	}
	return &tlsChecker{c, s}, nil
}

// Check implements Checker.
func (t *tlsChecker) Check(ctx context.Context, b Backend) error {
	at := t.check.At(b)
	conn, err := t.check.dial(ctx, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	client, err := t.tls.handshake(ctx, conn, at)
	if err != nil {
		if t.tls.judgesNothing() && isUnreadable(err) {
			return nil // it has begun to serve TLS, and its certificate is not looked at
		}
		return err
	}
	return client.Close() // sends close_notify, so that the server logs no error
}

// tlsDialer makes TLS connections as its TLSOptions say.
type tlsDialer struct {
	options TLSOptions
	pin     []byte
	ca      *fileCache[*x509.CertPool]
	cert    *fileCache[*tls.Certificate]

	// Sessions are resumed per server: with two handshakes per second from every
	// node of a large cluster, a core of each server would do nothing but sign.
	mu       sync.Mutex
	sessions map[netip.AddrPort]tls.ClientSessionCache
	pool     *x509.CertPool // the CAs that the sessions were verified with
}

func newTLSDialer(options TLSOptions) (s *tlsDialer, err error) {
	s = &tlsDialer{options: options, sessions: make(map[netip.AddrPort]tls.ClientSessionCache)}
	if s.pin, err = options.PinHash(); err != nil {
		return nil, err
	}
	if options.Verify && options.CAFile == "" {
		// They are read once. Later the process may be out of files.
		_, _ = x509.SystemCertPool()
	}
	if options.CAFile != "" {
		if s.ca, err = newFileCache(parseCA, options.CAFile); err != nil {
			return nil, err
		}
	}
	if options.CertFile != "" || options.KeyFile != "" {
		if s.cert, err = newFileCache(parsePair, options.CertFile, options.KeyFile); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// config is for one connection to the server at at.
func (s *tlsDialer) config(at netip.AddrPort) *tls.Config {
	c := &tls.Config{
		ServerName: s.options.ServerName,
		// A check asks whether the server serves. Its clients find out whether it
		// is the right one, unless the operator wants that here too.
		InsecureSkipVerify: !s.options.Verify,
		VerifyConnection:   s.verifyPin,
	}
	if s.judgesNothing() {
		// The server's own clients may be as old as it is. See also the go:debug lines of package main.
		c.MinVersion, c.CipherSuites = tls.VersionTLS10, everySuite()
	}
	if c.ServerName == "" {
		c.ServerName = at.Addr().WithZone("").String()
	}
	if s.ca != nil {
		c.RootCAs = s.ca.get()
	}
	if s.cert != nil {
		c.Certificates = []tls.Certificate{*s.cert.get()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pool != c.RootCAs {
		clear(s.sessions)
		s.pool = c.RootCAs
	}
	if s.sessions[at] == nil {
		s.sessions[at] = tls.NewLRUClientSessionCache(2)
	}
	c.ClientSessionCache = s.sessions[at]
	return c
}

// judgesNothing reports whether it is all the same who the server is, so that neither its certificate nor an old
// version of TLS speaks against it.
func (s *tlsDialer) judgesNothing() bool { return !s.options.Verify && s.pin == nil }

// everySuite is all cipher suites of Go up to TLS 1.2, those without forward secrecy too. Better ones are preferred.
func everySuite() (ids []uint16) {
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		ids = append(ids, suite.ID)
	}
	return ids
}

// isUnreadable reports whether a handshake ended because Go cannot read the server's certificate. There is no type for
// that error.
func isUnreadable(err error) bool {
	return strings.HasPrefix(err.Error(), "tls: failed to parse certificate from server: ")
}

// verifyPin holds the server's key against the pin. It is called for resumed
// sessions too.
func (s *tlsDialer) verifyPin(state tls.ConnectionState) error {
	if s.pin == nil {
		return nil
	}
	hash := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
	if bytes.Equal(hash[:], s.pin) {
		return nil
	}
	return &Mismatch{"the server's key is not the pinned one",
		"check: {tls: {pin: " + base64.StdEncoding.EncodeToString(hash[:]) + "}}"}
}

// handshake makes conn a TLS connection. The caller closes conn.
func (s *tlsDialer) handshake(ctx context.Context, conn net.Conn, at netip.AddrPort) (*tls.Conn, error) {
	client := tls.Client(conn, s.config(at))
	if err := client.HandshakeContext(ctx); err != nil {
		return nil, handshakeError(err)
	}
	return client, nil
}

// handshakeError says why a handshake failed, and what to write if the server is
// as it should be.
func handshakeError(err error) error {
	var (
		header  tls.RecordHeaderError
		cert    *tls.CertificateVerificationError
		alert   tls.AlertError
		invalid x509.CertificateInvalidError
		pin     *Mismatch
	)
	switch {
	case errors.As(err, &pin):
		return pin
	case errors.As(err, &header) && string(header.RecordHeader[:]) == "HTTP/":
		return &Mismatch{"answers in plain HTTP, without TLS", "check: {type: http}"}
	case errors.As(err, &header):
		return &Mismatch{"does not speak TLS", "check: {type: tcp}"}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("its certificate has expired (%w); renew it, or write check: {tls: {verify: false}}", err)
	case errors.As(err, &cert):
		return &Mismatch{"its certificate is not trusted (" + cert.Err.Error() + ")",
			"check: {tls: {caFile: the CA's file, serverName: a name in the certificate}}, or {tls: {verify: false}}"}
	case errors.As(err, &alert):
		return &Mismatch{"refuses the TLS handshake (" + alert.Error() + ")",
			"check: {tls: {certFile: ..., keyFile: ...}} if it wants a client certificate, or check: {type: tcp}"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET):
		return &Mismatch{"closes the connection during the TLS handshake", "check: {type: tcp}"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return &Mismatch{"takes the connection, but does not answer the TLS handshake in time", "check: {type: tcp}"}
	}
	return err
}

// withTimeout bounds ctx by d too; zero or less means no bound.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
