package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"

	"appliance/keyfile"
)

// A Key is the secret that the peers of one group share. Whoever has it is a peer.
type Key struct {
	secret [32]byte
}

// keyPrefix names the format, so that a later one can be told from this.
const keyPrefix = "appliance-group-key-1:"

// GenerateKey makes a new random key.
func GenerateKey() Key {
	var k Key
	rand.Read(k.secret[:]) // never fails (crypto/rand)
	return k
}

// Text is the text form, which [ParseKey] reads. It is the secret itself.
func (k Key) Text() string {
	return keyPrefix + base64.RawStdEncoding.EncodeToString(k.secret[:])
}

// String keeps the secret out of logs and errors.
func (k Key) String() string { return keyPrefix + "…" }

// ParseKey reads the text form of a key; space around it is ignored.
func ParseKey(text []byte) (Key, error) {
	text = bytes.TrimSpace(text)
	b64, ok := bytes.CutPrefix(text, []byte(keyPrefix))
	if !ok {
		return Key{}, fmt.Errorf("not a group key: it does not begin with %q; make one with 'appliance keygen'",
			keyPrefix)
	}
	raw, err := base64.RawStdEncoding.DecodeString(string(b64))
	if err != nil || len(raw) != len(Key{}.secret) {
		return Key{}, errors.New("the group key is damaged (it has to be one line of 65 characters); copy it " +
			"again from another peer")
	}
	var k Key
	copy(k.secret[:], raw)
	return k, nil
}

// maxKeys is two, and one more for a rotation that was begun twice.
const maxKeys = 3

// LoadKey reads the first key of a file that nobody but its owner may read.
func LoadKey(path string) (Key, error) {
	keys, err := LoadKeys(path)
	if err != nil {
		return Key{}, err
	}
	return keys[0], nil
}

// LoadKeys reads the keys of a file, one per line. Several keys make a rotation: peers accept all of them and
// show the first.
func LoadKeys(path string) ([]Key, error) {
	f, err := keyfile.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("group key %s does not exist; make one with 'appliance keygen > %s' and copy it "+
			"to every peer", path, path)
	}
	if err != nil {
		return nil, fmt.Errorf("group key: %w; run as root, or let the service's user read it: `appliance prepare`", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("group key: %w", err)
	}
	if err := keyfile.Check(path, fi, keyfile.OwnerOnly); err != nil {
		return nil, fmt.Errorf("group key %w", err)
	}
	var text [1024]byte
	n, err := f.Read(text[:])
	if err != nil {
		return nil, fmt.Errorf("group key %s is empty or unreadable (%v); make one with 'appliance keygen > %s'",
			path, err, path)
	}
	var keys []Key
	for line := range bytes.Lines(bytes.TrimSpace(text[:n])) {
		k, err := ParseKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		keys = append(keys, k)
	}
	if len(keys) > maxKeys || n == len(text) {
		return nil, fmt.Errorf("%s has more than %d keys; keep the one in use and the one to come", path, maxKeys)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("group key %s is empty; make one with 'appliance keygen > %s'", path, path)
	}
	return keys, nil
}

// authority derives the CA of a key. The same key gives the same CA everywhere.
func (k Key) authority() (*x509.Certificate, ed25519.PrivateKey, error) {
	return derive(k.secret[:], "appliance group ca ed25519 v1", "appliance group")
}
