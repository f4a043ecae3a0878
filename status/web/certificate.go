package web

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"appliance/keyfile"
)

// Secure wraps l in TLS with a certificate and its key in two files, which are read again when they change. It offers
// HTTP/1.1 only: a page needs no more, and it is the smaller target.
func Secure(l net.Listener, certFile, keyFile string) (net.Listener, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if _, err := c.get(nil); err != nil {
		return nil, fmt.Errorf("admin.certFile: %w; give a certificate and its key in PEM", err)
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: c.get,
	}), nil
}

// A certificate is a pair of files that are replaced from time to time.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	pair    *tls.Certificate
	changed time.Time
	looked  time.Time
}

func (c *certificate) load() (pair tls.Certificate, err error) {
	key, err := keyfile.Read(c.keyFile, keyfile.GroupToo)
	if err != nil {
		return pair, err
	}
	cert, err := keyfile.ReadPublic(c.certFile)
	if err != nil {
		return pair, err
	}
	return tls.X509KeyPair(cert, key)
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pair != nil && time.Since(c.looked) < time.Second {
		return c.pair, nil
	}
	c.looked = time.Now()
	info, err := os.Stat(c.certFile)
	if err == nil && c.pair != nil && info.ModTime().Equal(c.changed) {
		return c.pair, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = c.load()
	}
	if err != nil {
		if c.pair != nil {
			return c.pair, nil // perhaps only one file is replaced yet
		}
		return nil, err
	}
	c.pair, c.changed = &pair, info.ModTime()
	return c.pair, nil
}
