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
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tlsChecker checks that a server completes a TLS handshake, and is who it
// should be.
type tlsChecker struct {
	check  Check
	secure *secure
}

func newTLSChecker(c Check) (*tlsChecker, error) {
	s, err := newSecure(c.TLS)
	if err != nil {
		return nil, err
	}
	return &tlsChecker{c, s}, nil
}

// Check implements Checker.
func (t *tlsChecker) Check(ctx context.Context, b Backend) error {
	at := t.check.at(b)
	conn, err := dial(ctx, at)
	if err != nil {
		return err
	}
	defer conn.Close()
	client, err := t.secure.handshake(ctx, conn, at)
	if err != nil {
		return err
	}
	return client.Close() // with a word, so that the server logs no error
}

// secure makes TLS connections as a Trust wants them.
type secure struct {
	spec Trust
	pin  []byte
	ca   *fresh[*x509.CertPool]
	cert *fresh[*tls.Certificate]

	// Sessions are resumed per server: two handshakes per second from every
	// node of a large cluster would keep a core of each server signing.
	mu       sync.Mutex
	sessions map[netip.AddrPort]tls.ClientSessionCache
	pool     *x509.CertPool // which the sessions were verified with
}

func newSecure(spec Trust) (s *secure, err error) {
	s = &secure{spec: spec, sessions: make(map[netip.AddrPort]tls.ClientSessionCache)}
	if s.pin, err = spec.pin(); err != nil {
		return nil, err
	}
	if spec.CAFile != "" {
		if s.ca, err = newFresh(parseCA, spec.CAFile); err != nil {
			return nil, err
		}
	}
	if spec.CertFile != "" || spec.KeyFile != "" {
		if s.cert, err = newFresh(parsePair, spec.CertFile, spec.KeyFile); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// config is for one connection to the server at at.
func (s *secure) config(at netip.AddrPort) *tls.Config {
	c := &tls.Config{
		ServerName: s.spec.ServerName,
		// A check asks whether the server serves; whether it is the right one
		// is for its clients to find out, unless the operator wants it here.
		InsecureSkipVerify: !s.spec.Verify,
		VerifyConnection:   s.pinned,
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

// pinned holds the server's key against the pin. It is asked for resumed
// sessions too.
func (s *secure) pinned(state tls.ConnectionState) error {
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
func (s *secure) handshake(ctx context.Context, conn net.Conn, at netip.AddrPort) (*tls.Conn, error) {
	client := tls.Client(conn, s.config(at))
	if err := client.HandshakeContext(ctx); err != nil {
		return nil, notTLS(err)
	}
	return client, nil
}

// notTLS says what a failed handshake amounts to, and what to write if the
// server is as it should be.
func notTLS(err error) error {
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

// within bounds ctx by d too.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
