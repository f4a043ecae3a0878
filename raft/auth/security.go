package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"appliance/keyfile"
)

// Security says how peers know each other. Exactly one way is set.
type Security struct {
	// Keys are group keys. Every one is accepted; the first signs our own certificate. Two keys make a
	// rotation without downtime.
	Keys []Key
	// KeyFile is where they come from, for messages.
	KeyFile string
	// CA, Cert and Key are PEM files of the operator's own authority. The certificate of a peer has to carry
	// the id or the address of a listed peer as DNS name, IP address or common name. One with the URI
	// appliance://worker/NAME is a worker's, whatever else it carries.
	CA, Cert, Key string
	// Insecure leaves connections unencrypted and peers unauthenticated.
	Insecure bool
}

// Listed is a peer that an operator's certificate may be for.
type Listed struct {
	ID   string
	Addr netip.AddrPort
}

// Credentials are what peer self shows and how it verifies the others; nil if insecure. With an operator's
// certificates, peers says who is listed now.
func (s Security) Credentials(self string, peers func() []Listed) (*Credentials, error) {
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
	return nil, errors.New("a group of more than one peer needs a group key; make one with 'appliance keygen', " +
		"or set insecure if the network between the peers is trusted")
}

func (s Security) fromKeys(self string) (*Credentials, error) {
	c, err := FromKeys(s.Keys, self, Peer)
	if err == nil && s.KeyFile != "" {
		c.of = "the group key in " + s.KeyFile + " here"
	}
	return c, err
}

// FromKeys are the credentials of self as a member of the group of keys, in the role as.
func FromKeys(keys []Key, self string, as CertRole) (*Credentials, error) {
	c := &Credentials{
		time: groupTime, identify: fromURI,
		of: "the group key here", remedy: "copy the key file that is right to every peer; it is read again " +
			"within seconds",
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

func (s Security) fromFiles(peers func() []Listed) (*Credentials, error) {
	if s.CA == "" || s.Cert == "" || s.Key == "" {
		return nil, errors.New("own certificates need all of ca, cert and key; add what is missing")
	}
	key, err := keyfile.Read(s.Key, keyfile.GroupToo)
	if err != nil {
		return nil, fmt.Errorf("certificate's key: %w", err)
	}
	cert, err := keyfile.ReadPublic(s.Cert)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	leaf, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", s.Cert, s.Key, err)
	}
	text, err := keyfile.ReadPublic(s.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	roots, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", s.CA, err)
	}
	return &Credentials{
		leaf: leaf, roots: roots, time: time.Now,
		identify: func(leaf *x509.Certificate) (Identity, error) { return fromNames(leaf, peers()) },
		of:       fmt.Sprintf("the certificate %s of the authority %s here", s.Cert, s.CA),
		remedy: "have the same authority in caFile everywhere, and a certificate of it with the peer's id or address " +
			"in certFile; the group has to know the peer: 'appliance peers add ID=ADDRESS' on a member",
	}, nil
}

// fromNames reads the identity of a worker, or of the listed peer whose id or address leaf carries.
func fromNames(leaf *x509.Certificate, peers []Listed) (Identity, error) {
	if who, err := fromURI(leaf); err == nil && who.Role == Worker {
		return who, nil
	}
	for _, p := range peers {
		hasAddr := func(ip net.IP) bool {
			a, ok := netip.AddrFromSlice(ip)
			return ok && a.Unmap() == p.Addr.Addr().Unmap().WithZone("")
		}
		if leaf.Subject.CommonName == p.ID || slices.Contains(leaf.DNSNames, p.ID) ||
			slices.ContainsFunc(leaf.IPAddresses, hasAddr) {
			return Identity{ID: p.ID, Role: Peer}, nil
		}
	}
	return Identity{}, Foreign(fmt.Sprintf("the certificate of %q carries neither id nor address of a peer that is "+
		"known here; run 'appliance peers add ID=ADDRESS' on a member, or put the id or address of the peer into the "+
		"certificate's names", leaf.Subject.CommonName))
}

// CheckWorker says what keeps certificates of the operator's own authority from being a worker's, or nil.
func (s Security) CheckWorker() error {
	_, err := s.WorkerCredentials(nil)
	return err
}

// WorkerCredentials are what a worker shows and how it verifies the peers.
func (s Security) WorkerCredentials(peers func() []Listed) (*Credentials, error) {
	c, err := s.fromFiles(peers)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(c.leaf.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", s.Cert, err)
	}
	if who, err := fromURI(leaf); err != nil || who.Role != Worker {
		return nil, fmt.Errorf("certificate %s is not a worker's: it has no URI appliance://worker/NAME among its "+
			"subject "+
			"alternative names; issue one that has, or remove caFile, certFile and certKeyFile, and the worker serves "+
			"the backends of its own file", s.Cert)
	}
	return c, nil
}
