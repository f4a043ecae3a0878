package raft

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/raft/auth"
	"appliance/raft/peerport"
)

// TestStrangersDisturbNothing throws at the port what strangers throw, while the group works.
func TestStrangersDisturbNothing(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	h := b.holder()
	target := b.nodes[h]
	before := target.Status().Counters.Refused
	addr := target.cfg.Addr.String()

	other, err := auth.FromKeys([]auth.Key{auth.GenerateKey()}, "a", auth.Peer)
	if err != nil {
		t.Fatal(err)
	}
	worker, err := auth.FromKeys([]auth.Key{b.key}, "w", auth.Worker)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]func(net.Conn){
		"port scan": func(c net.Conn) {},
		"garbage":   func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
		"wrong key": func(c net.Conn) {
			t := tls.Client(c, other.TLS())
			t.Handshake()
			t.Write([]byte{peerport.PreambleRaft})
			io.Copy(io.Discard, t)
		},
		"no certificate": func(c net.Conn) {
			t := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			t.Handshake()
			io.Copy(io.Discard, t)
		},
		"a worker that wants to be a peer": func(c net.Conn) {
			t := tls.Client(c, worker.TLS())
			t.Handshake()
			t.Write([]byte{peerport.PreambleRaft})
			io.Copy(io.Discard, t)
		},
	}
	sent := 0
	for name, do := range kinds {
		for range 5 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			c.SetDeadline(time.Now().Add(20 * time.Second))
			do(c)
			c.Close()
			sent++
		}
	}
	// These connections say nothing and stay. There are more of them than the port serves at once.
	var silent []net.Conn
	for range peerport.MaxHandshakes + 8 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	b.eventually("every stranger to be counted", func() bool {
		return target.Status().Counters.Refused-before >= uint64(sent+len(silent))
	})
	for _, c := range silent {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("a silent connection is kept: %v", err)
		}
	}
	b.holder()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.nodes["a"].Propose(ctx, map[string]string{"still": "works"}); err != nil {
		t.Error(err)
	}
}

func TestWrongKeyDoesNotJoin(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b")
	b.holder()
	c := b.config("c")
	c.Security.Keys = []auth.Key{auth.GenerateKey()}
	n := b.run(c)
	b.eventually("the wrong key to be counted", func() bool {
		return b.nodes["a"].Status().Counters.Refused+b.nodes["b"].Status().Counters.Refused > 0
	})
	if n.running() != nil {
		t.Error("raft runs on a peer with the wrong key")
	}
	b.stop("c")
	b.start("c") // now with the right one
	b.voters(3)
}

func TestTwoKeysForARotation(t *testing.T) {
	b := newBench(t, 3)
	next := auth.GenerateKey()
	keys := map[string][]auth.Key{"a": {b.key, next}, "b": {next, b.key}, "c": {b.key, next}}
	b.tweak = func(c *Config) { c.Security.Keys = keys[c.ID] }
	b.start("a", "b", "c")
	b.holder()
	b.voters(3)
}

// TestOwnCertificates runs a group on an operator's own authority.
func TestOwnCertificates(t *testing.T) {
	b := newBench(t, 3)
	dir := t.TempDir()
	ca := newAuthority(t, dir)
	for _, p := range b.peers {
		ca.issue(t, p.ID, &x509.Certificate{Subject: pkix.Name{CommonName: "host-" + p.ID},
			IPAddresses: []net.IP{p.Addr.Addr().AsSlice()}})
	}
	ca.issue(t, "stranger", &x509.Certificate{Subject: pkix.Name{CommonName: "stranger"}})
	b.tweak = func(c *Config) { c.Security = ca.security(c.ID) }
	b.start("a", "b", "c")
	b.holder()
	b.voters(3)

	// A certificate of the same authority for somebody who is not listed.
	cred, err := ca.security("stranger").Credentials("stranger", b.listed)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", b.peers[0].Addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tc := tls.Client(c, cred.TLS())
	tc.SetDeadline(time.Now().Add(20 * time.Second))
	tc.Handshake() // TLS 1.3: the refusal comes after the client is done
	if _, err := tc.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("the stranger was told %v", err)
	}
}

type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", der)
	return &authority{dir: dir, cert: cert, key: key}
}

func (a *authority) issue(t *testing.T, name string, c *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(2)
	c.NotBefore, c.NotAfter = a.cert.NotBefore, a.cert.NotAfter
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(a.dir, name+".pem"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(a.dir, name+".key"), "PRIVATE KEY", raw)
}

func (a *authority) security(name string) auth.Security {
	return auth.Security{CA: filepath.Join(a.dir, "ca.pem"), Cert: filepath.Join(a.dir, name+".pem"),
		Key: filepath.Join(a.dir, name+".key")}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	key := auth.GenerateKey()
	secret := key.Text()[strings.Index(key.Text(), ":")+1:]
	for _, format := range []string{"%v", "%+v", "%s"} {
		text := fmt.Sprintf(format, Config{Security: auth.Security{Keys: []auth.Key{key}}})
		if strings.Contains(text, secret) {
			t.Errorf("%s prints the secret: %s", format, text)
		}
	}
}
