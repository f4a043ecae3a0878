package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// A CertRole says what the owner of a certificate may do.
type CertRole string

// The roles. A worker may follow the feed, and nothing else.
const (
	Peer   CertRole = "peer"
	Worker CertRole = "worker"
)

// An Identity is who the other end of a connection has proved to be. In insecure mode ID is empty.
type Identity struct {
	ID   string
	Role CertRole
}

// Credentials configure both ends of mutual TLS 1.3. Nil means insecure.
type Credentials struct {
	leaf     tls.Certificate
	roots    []*x509.Certificate
	time     func() time.Time
	identify func(leaf *x509.Certificate) (Identity, error)
	// workers signs those who may follow the feed, and do nothing else.
	workers []*x509.Certificate
	// of is what we show and accept, in words: "the group key in FILE".
	of string
	// remedy is what to do about somebody who shows or accepts something else.
	remedy string
}

// Explain turns what TLS says of somebody who is not of this group into what an operator can do. Other errors
// stay as they are.
func (c *Credentials) Explain(err error) error {
	var authority x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &authority):
		return Foreign(fmt.Sprintf("it has another than %s, or none; %s", c.of, c.remedy))
	case errors.As(err, &op) && op.Op == "remote error": // its alert, RFC 8446 section 6.2
		return Foreign(fmt.Sprintf("it does not accept %s (%v); %s", c.of, op.Err, c.remedy))
	case errors.As(err, &record):
		return Foreign("it does not speak TLS, so group.insecure is true there, or it is no appliance; remove " +
			"group.insecure, and " + c.remedy)
	}
	return err
}

// Foreign is an error that says why somebody is not of this group.
type Foreign string

func (f Foreign) Error() string { return string(f) }

// Verify is the whole of the authentication, the same for both ends.
func (c *Credentials) Verify(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, errors.New("no certificate")
	}
	leaf := state.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	by := func(authorities []*x509.Certificate) error {
		roots := x509.NewCertPool()
		for _, ca := range authorities {
			roots.AddCert(ca)
		}
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: c.time(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		return err
	}
	err := by(c.roots)
	if err == nil {
		return c.identify(leaf)
	}
	if len(c.workers) > 0 && by(c.workers) == nil {
		who, err := fromURI(leaf)
		return Identity{ID: who.ID, Role: Worker}, err // whatever it claims to be
	}
	return Identity{}, err
}

// TLS is the configuration for both ends.
func (c *Credentials) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.leaf},
		ClientAuth:   tls.RequireAnyClientCert,
		// Peers are not known by host names: VerifyConnection does the whole verification, on both sides.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := c.Verify(s)
			return err
		},
		// A ticket would resume a session without certificates.
		SessionTicketsDisabled: true,
	}
}
