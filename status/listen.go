package status

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// maxAdminConns bounds the connections of one admin listener: every page keeps
// one, and nobody may use up the process's files.
const maxAdminConns = 512

// Listen opens one address of the admin listener, address:port or unix:/path.
// Connections to the VIPs are refused even where the listener is on every address: who
// looks must know whom they look at, and clients of the VIP have no business here.
func Listen(at string, vips []netip.Addr) (net.Listener, error) {
	if file, ok := strings.CutPrefix(at, "unix:"); ok {
		// Whoever may write to the socket may look; give it a group to share it.
		l, err := listenUnix(file, 0o660)
		if err != nil {
			return nil, fmt.Errorf("admin.listen: %w", err)
		}
		return netutil.LimitListener(l, maxAdminConns), nil
	}
	l, err := net.Listen("tcp", at)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("admin.listen %s: another program listens there; stop it or write another port: %w", at, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("admin.listen %s: this host has no such address; write one that `ip address` shows: %w", at, err)
	case err != nil:
		return nil, fmt.Errorf("admin.listen %s: %w", at, err)
	}
	return netutil.LimitListener(offVIPs{l, vips}, maxAdminConns), nil
}

// offVIPs closes connections to VIPs.
type offVIPs struct {
	net.Listener
	vips []netip.Addr
}

func (l offVIPs) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		local, _ := netip.ParseAddrPort(c.LocalAddr().String())
		if !slices.Contains(l.vips, local.Addr().Unmap()) {
			return c, nil
		}
		c.Close()
	}
}

// Secure wraps l in TLS with the certificate in two files, which are read anew
// when they change. HTTP/1.1 only: a page needs no more, and it is the smaller target.
func Secure(l net.Listener, certFile, keyFile string) (net.Listener, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if _, err := c.get(nil); err != nil {
		return nil, fmt.Errorf("admin.certFile: %w; give a certificate and its key in PEM", err)
	}
	return tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: c.get}), nil
}

// certificate is a pair of files that are replaced from time to time.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	pair    *tls.Certificate
	changed time.Time
	looked  time.Time
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
		pair, err = tls.LoadX509KeyPair(c.certFile, c.keyFile)
	}
	if err != nil {
		if c.pair != nil {
			return c.pair, nil // half replaced: the old one is good until it is whole
		}
		return nil, err
	}
	c.pair, c.changed = &pair, info.ModTime()
	return c.pair, nil
}
