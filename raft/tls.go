package raft

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"
)

// Security says how peers know each other. Exactly one way is set.
type Security struct {
	// Keys are group keys. Every one is accepted; the first signs our own
	// certificate. Two keys make a rotation without downtime.
	Keys []Key
	// KeyFile is where they come from, for messages.
	KeyFile string
	// CA, Cert and Key are PEM files of the operator's own authority. The
	// certificate of a peer has to carry the id or the address of a listed
	// peer as DNS name, IP address or common name. One with the URI appliance://worker/NAME is a
	// worker's, whatever else it carries.
	CA, Cert, Key string
	// Insecure leaves connections unencrypted and peers unauthenticated.
	Insecure bool
}

// role says what the owner of a certificate may do.
type role string

const (
	rolePeer   role = "peer"
	roleWorker role = "worker" // may read settings, nothing else
)

// groupTime is the moment at which the certificates made from a group key are
// verified: the time of day of a host has no part in who is a peer. What ends
// a certificate's life is the process (its private key is never stored), and
// the group key's own end.
func groupTime() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// identity is who the other end of a connection has proved to be. In
// insecure mode and with an operator's certificate id may be empty.
type identity struct {
	id   string
	role role
}

// credentials makes both ends of mutual TLS 1.3. Nil means insecure.
type credentials struct {
	leaf   tls.Certificate
	roots  []*x509.Certificate
	time   func() time.Time
	listed func(leaf *x509.Certificate) (identity, error)
	peers  func() []Peer // with an operator's certificates: who is listed
	// workers signs those who may follow, and do nothing else.
	workers []*x509.Certificate
	// of is what we show and accept, in words: "the group key in FILE".
	of string
	// remedy is what to do about somebody who shows or accepts something else.
	remedy string
}

// explain turns what TLS says of somebody who is not of this group into what
// an operator can do. Other errors stay as they are.
func (c *credentials) explain(err error) error {
	var authority x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &authority):
		return foreign(fmt.Sprintf("it has another than %s, or none; %s", c.of, c.remedy))
	case errors.As(err, &op) && op.Op == "remote error": // its alert, RFC 8446 section 6.2
		return foreign(fmt.Sprintf("it does not accept %s (%v); %s", c.of, op.Err, c.remedy))
	case errors.As(err, &record):
		return foreign("it does not speak TLS, so group.insecure is true there, or it is no appliance; remove group.insecure, and " + c.remedy)
	}
	return err
}

// foreign is why somebody is not of this group.
type foreign string

func (f foreign) Error() string { return string(f) }

func (s Security) credentials(self string, peers []Peer) (*credentials, error) {
	ways := 0
	for _, set := range []bool{len(s.Keys) > 0, s.CA != "" || s.Cert != "" || s.Key != "", s.Insecure} {
		if set {
			ways++
		}
	}
	switch {
	case ways > 1:
		return nil, errors.New("group key, own certificates and insecure exclude each other; set one of them")
	case s.Insecure:
		return nil, nil
	case len(s.Keys) > 0:
		return s.fromKeys(self)
	case ways == 1:
		return s.fromFiles(peers)
	}
	return nil, errors.New("a group of more than one peer needs a group key; make one with 'appliance keygen', or set insecure if the network between the peers is trusted")
}

// authority derives the CA of a key. The same key gives the same CA everywhere.
func (k Key) authority() (*x509.Certificate, ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, k.secret[:], nil, "appliance group ca ed25519 v1", ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	ca, err := authorityOf("appliance group", key.Public(), key)
	return ca, key, err
}

func (s Security) fromKeys(self string) (*credentials, error) {
	c, err := fromKeys(s.Keys, self, rolePeer)
	if err == nil && s.KeyFile != "" {
		c.of = "the group key in " + s.KeyFile + " here"
	}
	return c, err
}

func fromKeys(keys []Key, self string, as role) (*credentials, error) {
	c := &credentials{
		time: groupTime, listed: fromURI,
		of: "the group key here", remedy: "copy the key file that is right to every peer; it is read again within seconds",
	}
	for i, k := range keys {
		ca, caKey, err := k.authority()
		if err != nil {
			return nil, fmt.Errorf("deriving the group's authority: %w", err)
		}
		c.roots = append(c.roots, ca)
		w, err := k.Worker()
		if err != nil {
			return nil, fmt.Errorf("deriving the workers' authority: %w", err)
		}
		workers, _, err := w.authority()
		if err != nil {
			return nil, fmt.Errorf("deriving the workers' authority: %w", err)
		}
		c.workers = append(c.workers, workers)
		if i > 0 {
			continue
		}
		if c.leaf, err = issue(self, as, ca, caKey); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// issue makes a certificate for self and its key, which is never stored.
func issue(self string, as role, ca *x509.Certificate, caKey ed25519.PrivateKey) (tls.Certificate, error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(pub[:16]),
		Subject:      pkix.Name{CommonName: self},
		URIs:         []*url.URL{{Scheme: "appliance", Host: string(as), Path: "/" + self}},
		NotBefore:    groupTime().AddDate(-1, 0, 0),
		NotAfter:     groupTime().AddDate(100, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, ca, pub, caKey)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: priv}, err
}

// fromURI reads the identity that a leaf of a group key carries.
func fromURI(leaf *x509.Certificate) (identity, error) {
	for _, u := range leaf.URIs {
		if u.Scheme == "appliance" && len(u.Path) > 1 {
			return identity{id: u.Path[1:], role: role(u.Host)}, nil
		}
	}
	return identity{}, errors.New("the certificate names no peer")
}

func (s Security) fromFiles(peers []Peer) (*credentials, error) {
	if s.CA == "" || s.Cert == "" || s.Key == "" {
		return nil, errors.New("own certificates need all of ca, cert and key; add what is missing")
	}
	leaf, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", s.Cert, s.Key, err)
	}
	text, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	roots, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", s.CA, err)
	}
	c := &credentials{
		leaf: leaf, roots: roots, time: time.Now, peers: func() []Peer { return peers },
		of:     fmt.Sprintf("the certificate %s of the authority %s here", s.Cert, s.CA),
		remedy: "have the same authority in caFile everywhere, and a certificate of it with the peer's id or address in certFile; the group has to know the peer: 'appliance peers add ID=ADDRESS' on a member",
	}
	c.listed = func(leaf *x509.Certificate) (identity, error) {
		if who, err := fromURI(leaf); err == nil && who.role == roleWorker {
			return who, nil
		}
		for _, p := range c.peers() {
			hasAddr := func(ip net.IP) bool {
				a, ok := netip.AddrFromSlice(ip)
				return ok && a.Unmap() == p.Addr.Addr().Unmap().WithZone("")
			}
			if leaf.Subject.CommonName == p.ID || slices.Contains(leaf.DNSNames, p.ID) ||
				slices.ContainsFunc(leaf.IPAddresses, hasAddr) {
				return identity{id: p.ID, role: rolePeer}, nil
			}
		}
		return identity{}, foreign(fmt.Sprintf("the certificate of %q carries neither id nor address of a peer that is known here; run 'appliance peers add ID=ADDRESS' on a member, or put the id or address of the peer into the certificate's names",
			leaf.Subject.CommonName))
	}
	return c, nil
}

// CheckWorker says what keeps certificates of the operator's own authority
// from being a worker's, or nil.
func (s Security) CheckWorker() error {
	_, err := s.workerCredentials()
	return err
}

// workerCredentials are what a worker shows and by what it knows the peers.
func (s Security) workerCredentials() (*credentials, error) {
	c, err := s.fromFiles(nil)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(c.leaf.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", s.Cert, err)
	}
	if who, err := fromURI(leaf); err != nil || who.role != roleWorker {
		return nil, fmt.Errorf("certificate %s is no worker's: it has no URI appliance://worker/NAME among its subject alternative names; issue one that has, "+
			"or remove caFile, certFile and certKeyFile, and the worker serves the backends of its own file", s.Cert)
	}
	return c, nil
}

// verify is the whole of the authentication, the same for both ends.
func (c *credentials) verify(state tls.ConnectionState) (identity, error) {
	if len(state.PeerCertificates) == 0 {
		return identity{}, errors.New("no certificate")
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
		return c.listed(leaf)
	}
	if len(c.workers) > 0 && by(c.workers) == nil {
		who, err := fromURI(leaf)
		return identity{id: who.id, role: roleWorker}, err // whatever it says that it is
	}
	return identity{}, err
}

func (c *credentials) config() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{c.leaf},
		ClientAuth:   tls.RequireAnyClientCert,
		// Names are not what peers are known by: VerifyConnection does the
		// whole verification, on both sides.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := c.verify(s)
			return err
		},
		// A ticket would resume a session without certificates.
		SessionTicketsDisabled: true,
	}
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, text = pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM form in it")
	}
	return certs, nil
}
