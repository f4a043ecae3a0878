package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"

	"appliance/keyfile"
)

// A WorkerKey lets a worker follow the feed, and nothing else. A group key always gives the same worker key,
// which does not reveal it: a worker key holds the secret of the workers' own authority and only the public
// key of the group's, with which a worker verifies the peers.
type WorkerKey struct {
	secret [32]byte
	group  [ed25519.PublicKeySize]byte
}

const workerKeyPrefix = "appliance-worker-key-1:"

// Worker is the worker key that k gives.
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
		return w, fmt.Errorf("not a worker key: it does not begin with %q; make one with 'appliance keygen "+
			"--worker'", workerKeyPrefix)
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
	text, err := keyfile.Read(path, keyfile.OwnerOnly)
	var access *fs.PathError
	switch {
	case err != nil && !errors.As(err, &access):
		return WorkerKey{}, fmt.Errorf("worker key %w", err)
	case err != nil:
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
	return derive(w.secret[:], "appliance worker ca ed25519 v1", "appliance workers")
}

// groupAuthority is the group's CA as a root for verification. Nobody checks a root's own signature, so a
// throw-away key makes it.
func (w WorkerKey) groupAuthority() (*x509.Certificate, error) {
	_, passing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return authorityOf("appliance group", ed25519.PublicKey(w.group[:]), passing)
}

// Credentials are what a worker shows and how it verifies the peers.
func (w WorkerKey) Credentials(self string) (*Credentials, error) {
	ca, key, err := w.authority()
	if err != nil {
		return nil, err
	}
	group, err := w.groupAuthority()
	if err != nil {
		return nil, err
	}
	leaf, err := issue(self, Worker, ca, key)
	if err != nil {
		return nil, err
	}
	return &Credentials{
		leaf: leaf, roots: []*x509.Certificate{group}, time: groupTime, identify: fromURI,
		of:     "the worker key here",
		remedy: "make one from the group key with 'appliance keygen --worker' on a peer",
	}, nil
}
