package raft

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"appliance/raft/lease"
)

// The control protocol: one JSON request per line, one JSON reply per line,
// in turn. Unknown fields are ignored on both sides so that versions may differ.

type operation string

const (
	opHello    operation = "hello"    // who are you, what do you know
	opAccount  operation = "account"  // your ledger
	opAdmit    operation = "admit"    // take this peer into the group
	opPropose  operation = "propose"  // change these settings
	opTransfer operation = "transfer" // hand over to this peer
	opView     operation = "view"     // what you show of yourself
	opAdd      operation = "add"      // expect this peer
	opRemove   operation = "remove"   // the peer To is no member any more
	opPromote  operation = "promote"  // the peer To votes
	opDemote   operation = "demote"   // the peer To does not vote
	opFollow   operation = "follow"   // what is there but After, for workers
)

type request struct {
	Op     operation `json:"op"`
	Peer   *Peer     `json:"peer,omitempty"`
	Change *change   `json:"change,omitempty"`
	To     string    `json:"to,omitempty"`
	From   string    `json:"from,omitempty"`
	// Heartbeat is in a hello that of who asks, in nanoseconds.
	Heartbeat time.Duration `json:"heartbeat,omitempty"`
	Force     bool          `json:"force,omitempty"`
	After     string        `json:"after,omitempty"`
	// Joins is of a peer that was told to join, so nobody needs to list it.
	Joins bool `json:"joins,omitempty"`
	// Forwarded requests are not forwarded again.
	Forwarded bool `json:"forwarded,omitempty"`
}

type reply struct {
	Error   string         `json:"error,omitempty"`
	Hello   *hello         `json:"hello,omitempty"`
	Feed    *feed          `json:"feed,omitempty"`
	Account *lease.Account `json:"account,omitempty"`
	// Datagrams is the key for datagrams to this process: datagram.go.
	Datagrams []byte `json:"datagrams,omitempty"`
	View      []byte `json:"view,omitempty"`
}

// maxLine bounds a request or reply: settings of a large group are some 10 KiB.
const maxLine = 1 << 20

// controlIdle ends a control connection that asks nothing; its owner asks every second.
const controlIdle = 30 * time.Second

// answerer answers control requests.
type answerer func(ctx context.Context, from identity, r request) reply

// serveControl answers the requests of one connection until it ends.
func serveControl(ctx context.Context, conn net.Conn, who identity, answer answerer) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	lines := bufio.NewReader(conn)
	for {
		conn.SetReadDeadline(time.Now().Add(controlIdle))
		var r request
		if err := readLine(lines, &r); err != nil {
			return
		}
		conn.SetWriteDeadline(time.Now().Add(controlIdle))
		if err := writeLine(conn, answer(ctx, who, r)); err != nil {
			return
		}
	}
}

func readLine(r *bufio.Reader, into any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return errors.New("control message too long")
		}
		line = append(line, part...)
		if err == nil {
			return json.Unmarshal(line, into)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func writeLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// link is the control connection to one peer, kept open between questions.
// Its lock is one token in a channel, so that waiting for it can be given up.
type link struct {
	p    *port
	id   string
	addr netip.AddrPort

	turn   chan struct{}
	conn   net.Conn
	lines  *bufio.Reader
	closed bool
	brief  bool // its connection is not replaced: there are other peers to ask

	mu        sync.Mutex
	connected bool
	problem   error // why not
	roundTrip time.Duration
	since     time.Time
}

func newLink(p *port, id string, addr netip.AddrPort) *link {
	l := &link{p: p, id: id, addr: addr, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// call asks. A connection that turns out to have ended is replaced once.
func (l *link) call(ctx context.Context, r request) (reply, error) {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
	kept := l.conn != nil
	rep, err := l.once(ctx, r)
	if err != nil && kept && !l.brief && ctx.Err() == nil {
		rep, err = l.once(ctx, r)
	}
	l.mu.Lock()
	if l.connected != (err == nil) {
		l.connected, l.since = err == nil, time.Now()
	}
	l.problem = err
	l.mu.Unlock()
	if err != nil {
		return reply{}, fmt.Errorf("peer %s at %s: %w", l.id, l.addr, err)
	}
	if rep.Error != "" {
		return rep, refusal(rep.Error)
	}
	return rep, nil
}

func (l *link) once(ctx context.Context, r request) (rep reply, err error) {
	if l.closed {
		return reply{}, net.ErrClosed
	}
	if l.conn == nil {
		conn, err := l.p.open(ctx, l.addr, l.id, preambleControl)
		if err != nil {
			return reply{}, err
		}
		l.conn, l.lines = conn, bufio.NewReader(conn)
	}
	conn := l.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		// After a failure, or with the deadline already on it, the
		// connection is of no use: a late reply would answer the next question.
		if !stop() || err != nil {
			conn.Close()
			l.conn = nil
		}
	}()
	asked := time.Now()
	if err := writeLine(conn, r); err != nil {
		return reply{}, err
	}
	if err := readLine(l.lines, &rep); err != nil {
		// With TLS 1.3 the first answer tells whether we were accepted.
		err = l.p.explain(err)
		l.p.tellForeign(l.addr.Addr().Unmap(), err)
		return reply{}, err
	}
	if r.Op == opHello || r.Op == opAccount {
		l.mu.Lock()
		l.roundTrip = time.Since(asked)
		l.mu.Unlock()
	}
	return rep, nil
}

// apart asks on a connection of its own, for what takes long: the kept one has
// to be free for a new leader's questions.
func (l *link) apart(ctx context.Context, r request) (reply, error) {
	own := newLink(l.p, l.id, l.addr)
	defer own.close()
	return own.call(ctx, r)
}

// close ends the connection, after the last who asks on it.
func (l *link) close() {
	<-l.turn
	l.closed = true
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	l.turn <- struct{}{}
}

// refusal is what another peer said no with. It is about what was asked, not
// about the connection, so asking again is of no use.
type refusal string

func (r refusal) Error() string { return string(r) }
