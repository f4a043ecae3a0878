package auth

import (
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"time"
)

// groupTime is the moment at which the certificates made from a group key are verified: the time of day of a
// host has no part in who is a peer. A certificate ends with the process, whose private key is never stored,
// or with the group key.
func groupTime() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// derive makes the CA called name of a secret. The same secret gives the same CA everywhere.
func derive(secret []byte, info, name string) (*x509.Certificate, ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, secret, nil, info, ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	ca, err := authorityOf(name, key.Public(), key)
	return ca, key, err
}

func authorityOf(name string, public crypto.PublicKey, by ed25519.PrivateKey) (*x509.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             groupTime().AddDate(-1, 0, 0),
		NotAfter:              groupTime().AddDate(100, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issue makes a certificate for self and its key, which is never stored.
func issue(self string, as CertRole, ca *x509.Certificate, caKey ed25519.PrivateKey) (tls.Certificate, error) {
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

// fromURI reads the identity that a certificate made from a group key carries.
func fromURI(leaf *x509.Certificate) (Identity, error) {
	for _, u := range leaf.URIs {
		if u.Scheme == "appliance" && len(u.Path) > 1 {
			return Identity{ID: u.Path[1:], Role: CertRole(u.Host)}, nil
		}
	}
	return Identity{}, errors.New("the certificate names no peer")
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
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return certs, nil
}
