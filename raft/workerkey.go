package raft

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"os"
)

// A WorkerKey lets a worker follow the group's load balancers, with what they
// tell it to be a node of the direct data plane, and nothing else. It comes from the group key, always the same from the same, and does
// not give it away: it holds the secret of the workers' own authority, and of
// the group's the public key, by which a worker knows the peers.
type WorkerKey struct {
	secret [32]byte
	group  [ed25519.PublicKeySize]byte
}

const workerKeyPrefix = "appliance-worker-key-1:"

// Worker is the worker key of the group that k is the key of.
func (k Key) Worker() (WorkerKey, error) {
	var w WorkerKey
	secret, err := hkdf.Key(sha256.New, k.secret[:], nil, "appliance worker key v1", len(w.secret))
	if err != nil {
		return w, err
	}
	copy(w.secret[:], secret)
	ca, _, err := k.authority()
	if err != nil {
		return w, err
	}
	copy(w.group[:], ca.PublicKey.(ed25519.PublicKey))
	return w, nil
}

// Text is the text form, which [ParseWorkerKey] reads. It is the secret itself.
func (w WorkerKey) Text() string {
	return workerKeyPrefix + base64.RawStdEncoding.EncodeToString(append(w.secret[:], w.group[:]...))
}

// String keeps the secret out of logs and errors.
func (w WorkerKey) String() string { return workerKeyPrefix + "…" }

// ParseWorkerKey reads the text form of a worker key.
func ParseWorkerKey(text []byte) (WorkerKey, error) {
	var w WorkerKey
	b64, ok := bytes.CutPrefix(bytes.TrimSpace(text), []byte(workerKeyPrefix))
	if !ok {
		return w, fmt.Errorf("not a worker key: it does not begin with %q; make one with 'appliance keygen --worker'", workerKeyPrefix)
	}
	raw, err := base64.RawStdEncoding.DecodeString(string(b64))
	if err != nil || len(raw) != len(w.secret)+len(w.group) {
		return w, errors.New("the worker key is damaged; make it again with 'appliance keygen --worker'")
	}
	copy(w.secret[:], raw)
	copy(w.group[:], raw[len(w.secret):])
	return w, nil
}

// LoadWorkerKey reads a worker key from a file.
func LoadWorkerKey(path string) (WorkerKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return WorkerKey{}, fmt.Errorf("worker key: %w; make one with 'appliance keygen --worker' on a peer", err)
	}
	w, err := ParseWorkerKey(text)
	if err != nil {
		return WorkerKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return w, nil
}

// authority derives the CA of the group's workers.
func (w WorkerKey) authority() (*x509.Certificate, ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, w.secret[:], nil, "appliance worker ca ed25519 v1", ed25519.SeedSize)
	if err != nil {
		return nil, nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	ca, err := authorityOf("appliance workers", key.Public(), key)
	return ca, key, err
}

// groupAuthority is the group's CA as a root to verify by. A root's own
// signature is nobody's concern, so a passing key makes it.
func (w WorkerKey) groupAuthority() (*x509.Certificate, error) {
	_, passing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return authorityOf("appliance group", ed25519.PublicKey(w.group[:]), passing)
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

// credentials are what a worker shows and by what it knows the peers.
func (w WorkerKey) credentials(self string) (*credentials, error) {
	ca, key, err := w.authority()
	if err != nil {
		return nil, err
	}
	group, err := w.groupAuthority()
	if err != nil {
		return nil, err
	}
	leaf, err := issue(self, roleWorker, ca, key)
	if err != nil {
		return nil, err
	}
	return &credentials{leaf: leaf, roots: []*x509.Certificate{group}, time: groupTime, listed: fromURI,
		of: "the worker key here", remedy: "make one from the group key with 'appliance keygen --worker' on a peer"}, nil
}
