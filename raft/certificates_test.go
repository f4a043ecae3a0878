package raft

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"appliance/raft/auth"
	"appliance/raft/feed"
	"appliance/raft/peerport"
)

// logbook collects what is logged at level warn and above.
type logbook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logbook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// lines are those with all of what.
func (l *logbook) lines(what ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		all := true
		for _, w := range what {
			all = all && strings.Contains(line, w)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}

// TestWrongKeyIsToldOnBothSides: both logs name the file and say what to do, once per address.
func TestWrongKeyIsToldOnBothSides(t *testing.T) {
	b := newBench(t, 2)
	var left, right logbook
	a := b.config("a")
	a.StartAsLeader = true
	a.Security.KeyFile, a.Log = "/etc/left.key", left.logger()
	b.run(a)
	b.holder("a")
	wrong := b.config("b")
	wrong.Security = auth.Security{Keys: []auth.Key{auth.GenerateKey()}, KeyFile: "/etc/right.key"}
	wrong.Log = right.logger()
	b.run(wrong)
	b.eventually("both to say what is wrong", func() bool {
		return len(left.lines("/etc/left.key", "copy the key file")) > 0 && len(right.lines("/etc/right.key",
			"copy the key file")) > 0
	})
	b.eventually("the status to say so too", func() bool {
		for _, p := range b.nodes["b"].Status().Peers {
			if p.ID == "a" && strings.Contains(p.Problem, "/etc/right.key") {
				return true
			}
		}
		return false
	})
	before := b.nodes["a"].Status().Counters.Refused
	b.eventually("more tries", func() bool { return b.nodes["a"].Status().Counters.Refused > before+5 })
	// There is one line per address, however often it connects.
	if told := left.lines("/etc/left.key"); len(told) != 1 {
		t.Errorf("told %d times: %s", len(told), strings.Join(told, ""))
	}
}

func TestInsecureAndSecureMeet(t *testing.T) {
	b := newBench(t, 2)
	var left, right logbook
	a := b.config("a")
	a.StartAsLeader = true
	a.Log = left.logger()
	b.run(a)
	b.holder("a")
	plain := b.config("b")
	plain.Security = auth.Security{Insecure: true}
	plain.Log = right.logger()
	b.run(plain)
	b.eventually("both to say what is wrong", func() bool {
		return len(left.lines("group.insecure")) > 0 && len(right.lines("group.insecure")) > 0
	})
}

func TestJoinWithOwnCertificates(t *testing.T) {
	b := newBench(t, 1)
	ca := newAuthority(t, t.TempDir())
	d := b.newcomer("d", 4)
	ca.issue(t, "a", &x509.Certificate{IPAddresses: []net.IP{b.peers[0].Addr.Addr().AsSlice()}})
	ca.issue(t, "d", &x509.Certificate{Subject: pkix.Name{CommonName: "d"}})
	b.tweak = func(c *Config) { c.Security = ca.security(c.ID) }
	var log logbook
	a := b.config("a")
	a.StartAsLeader = true
	a.Log = log.logger()
	b.run(a)
	b.holder("a")
	// The group does not know it yet; both sides say so.
	var own logbook
	joins := b.joiner(d, b.peers[0])
	joins.Log = own.logger()
	b.run(joins)
	b.eventually("both sides to say what to do", func() bool {
		return len(log.lines("neither id nor address", "appliance peers add")) > 0 &&
			len(own.lines("does not accept the certificate", "appliance peers add")) > 0
	})
	b.must("the addition", func() error { return b.nodes["a"].AddPeer(b.ctx(), d, false) })
	b.voters(2)
	b.stop("d")
	b.run(joins) // the disk tells who the others are
	b.voters(2)
	b.eventually("both to be connected", func() bool {
		for _, n := range b.nodes {
			for _, p := range n.Status().Peers {
				if !p.Connected {
					return false
				}
			}
		}
		return true
	})
}

func TestWorkerWithOwnCertificates(t *testing.T) {
	b := newBench(t, 1)
	ca := newAuthority(t, t.TempDir())
	ca.issue(t, "a", &x509.Certificate{Subject: pkix.Name{CommonName: "a"}})
	worker := &url.URL{Scheme: "appliance", Host: "worker", Path: "/w1"}
	// It carries a peer's name as well, and is a worker's nevertheless.
	ca.issue(t, "w1", &x509.Certificate{Subject: pkix.Name{CommonName: "a"}, URIs: []*url.URL{worker}})
	ca.issue(t, "host", &x509.Certificate{Subject: pkix.Name{CommonName: "w2"}})
	b.tweak = func(c *Config) { c.Security = ca.security(c.ID) }
	c := b.config("a")
	c.StartAsLeader = true
	b.run(c)
	b.holder("a")
	a := b.nodes["a"]
	a.Publish([]byte(`"one"`), a.Index())

	if err := ca.security("host").CheckWorker(); err == nil || !strings.Contains(err.Error(),
		"appliance://worker/NAME") {
		t.Errorf("a certificate without the mark of a worker: %v", err)
	}
	if err := ca.security("w1").CheckWorker(); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	f := feed.Follower{ID: "w1", Own: ca.security("w1"), Peers: b.listed(), Log: slog.New(slog.DiscardHandler)}
	go func() {
		done <- f.Follow(ctx, func(data []byte) { got <- string(data) }, func(err error) { t.Error(err) })
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if text := <-got; text != `"one"` {
		t.Errorf("got %s", text)
	}
	// It opens no other door.
	cred, err := ca.security("w1").WorkerCredentials(b.listed)
	if err != nil {
		t.Fatal(err)
	}
	p, err := peerport.Listen(netip.AddrPort{}, cred, b.config("a").network, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l := p.Link("a", b.peers[0].Addr)
	defer l.Close()
	for _, op := range []operation{opHello, opPropose, opRemove, opAdmit} {
		if _, err := ask(b.ctx(), l, request{Op: op, To: "a", From: "a", Peer: &b.peers[0]}); err == nil ||
			!strings.Contains(err.Error(), "worker may not") {
			t.Errorf("%s with a worker's certificate: %v", op, err)
		}
	}
	conn, err := p.Open(b.ctx(), b.peers[0].Addr, "a", peerport.PreambleRaft)
	if err == nil {
		defer conn.Close()
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("a worker's certificate opens raft: %d bytes", n)
		}
	}
	// A worker does not take the owner of such a certificate for a peer either.
	leaf, err := x509.ParseCertificate(cred.TLS().Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	who, err := cred.Verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})
	if err != nil || who.Role != auth.Worker {
		t.Errorf("it is a %s, %v", who.Role, err)
	}
}
