package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// The proof that a process is dead
//
// Every peer keeps a watch connection to every other. The server's side sends
// its incarnation (random, per process), then the term of each of its tenures
// before it answers in it, that it is silent for ever when it has begun to
// leave, and goodbye before it closes. The client's side sends nothing after
// the preamble.
//
// So when the client reads the end of the stream (a FIN) without a goodbye, the
// process at the other end is gone: a process that lives never closes a watch
// connection without goodbye, it resets it (SO_LINGER 0); and the kernel of a
// process that died sends FIN, not RST, because there never is unread data. The
// kernel closes files after the last thread has ended, so nothing that the
// process might have sent comes later. A reset, an ICMP error or silence
// proves nothing: firewalls and routers make those too.
//
// As a second witness the port is dialled again: it has to be refused, or
// answered by another incarnation.
//
// What is proved is "the process that led term t is dead", for the last t that
// came over this very connection. A later life of that peer leads later
// terms only, since t is on its disk. That the client may have been frozen for a
// while does not matter.

const (
	watchLead    = 'T' // this process leads a term: 8 bytes follow
	watchSilent  = 'S' // it answers no more, in no term, but still hands over
	watchGoodbye = 'B' // it is about to end

	// redials are how often, and redialPause how far apart, the port of a process
	// that seems dead is tried: the kernel closes its files one by one, so the
	// listener may outlive the watch connection for a moment.
	redials     = 20
	redialPause = 2 * time.Millisecond
)

type incarnation [8]byte

// watched is the server's side: who watches us.
type watched struct {
	self incarnation

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	term  uint64
	gone  bool // goodbye has been said
}

func (w *watched) handle(conn net.Conn, _ identity) {
	w.mu.Lock()
	if w.gone {
		w.mu.Unlock()
		abort(conn)
		return
	}
	greeting := append([]byte(nil), w.self[:]...)
	greeting = binary.BigEndian.AppendUint64(append(greeting, watchLead), w.term)
	if !send(conn, greeting) {
		w.mu.Unlock()
		abort(conn)
		return
	}
	w.conns[conn] = struct{}{}
	w.mu.Unlock()

	var none [1]byte
	conn.Read(none[:]) // returns when the watcher is gone, or says what it must not

	w.mu.Lock()
	_, open := w.conns[conn]
	delete(w.conns, conn)
	w.mu.Unlock()
	if open {
		abort(conn)
	}
}

// leads tells the watchers of a tenure before the first answer is given in it.
// A watcher that cannot be told is cut off: it will dial again and be told then.
func (w *watched) leads(term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.term = term
	msg := binary.BigEndian.AppendUint64([]byte{watchLead}, term)
	for conn := range w.conns {
		if !send(conn, msg) {
			delete(w.conns, conn)
			abort(conn)
		}
	}
}

// silent comes after the last answer of this process. The peer that leadership is
// handed to then has nothing to wait out, even if this process has ended when it asks.
func (w *watched) silent() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.conns {
		if !send(conn, []byte{watchSilent}) {
			delete(w.conns, conn)
			abort(conn)
		}
	}
}

// goodbye comes last of all.
func (w *watched) goodbye() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = true
	for conn := range w.conns {
		delete(w.conns, conn)
		if send(conn, []byte{watchGoodbye}) {
			conn.Close()
		} else {
			abort(conn)
		}
	}
}

// send is a write of a few bytes, which fit into the socket's buffer or not at
// all: a watcher that does not read must not hold up a tenure.
func send(conn net.Conn, msg []byte) bool {
	conn.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
	_, err := conn.Write(msg)
	return err == nil
}

// abort closes with a reset, which proves nothing to the other side.
func abort(conn net.Conn) {
	raw := conn
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
	}
	if l, ok := raw.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	raw.Close() // not conn: TLS would say its own goodbye first
}

// death is what a watcher has proved, or has been told by the process itself.
type death struct {
	peer string
	term uint64 // the last that it led, 0 for none
	told bool   // by the process
}

// watch keeps the watch connection to peer. It calls silent when the process
// there has said that it answers no more, and dead when it has ended.
func (p *port) watch(ctx context.Context, peer Peer, retry time.Duration, silent, dead func(death)) {
	for ctx.Err() == nil {
		who, term, err := p.watchOnce(ctx, peer, silent)
		switch {
		case errors.Is(err, errGoodbye), errors.Is(err, errVanished) && p.confirm(ctx, peer, who):
			dead(death{peer: peer.ID, term: term, told: errors.Is(err, errGoodbye)})
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}

var (
	errVanished = errors.New("end of stream without goodbye")
	errGoodbye  = errors.New("goodbye")
)

func (p *port) watchOnce(ctx context.Context, peer Peer, silent func(death)) (who incarnation, term uint64, err error) {
	conn, who, err := p.watchOpen(ctx, peer)
	if err != nil {
		return who, 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		var msg [9]byte
		if _, err := io.ReadFull(conn, msg[:1]); err != nil {
			// crypto/tls says io.EOF for a bare FIN between records too. A
			// close_notify cannot come here: goodbye is sent before it.
			if err == io.EOF {
				err = errVanished
			}
			return who, term, err
		}
		switch msg[0] {
		case watchLead:
		case watchSilent:
			silent(death{peer: peer.ID, term: term, told: true})
			continue
		case watchGoodbye:
			return who, term, errGoodbye
		default:
			return who, term, fmt.Errorf("unknown message %q: another version", msg[0])
		}
		if _, err := io.ReadFull(conn, msg[1:]); err != nil {
			return who, term, err
		}
		term = binary.BigEndian.Uint64(msg[1:])
	}
}

func (p *port) watchOpen(ctx context.Context, peer Peer) (net.Conn, incarnation, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var who incarnation
	conn, err := p.open(ctx, peer.Addr, peer.ID, preambleWatch)
	if err != nil {
		return nil, who, err
	}
	conn.SetReadDeadline(time.Now().Add(handshakeTimeout))
	if _, err := io.ReadFull(conn, who[:]); err != nil {
		conn.Close()
		return nil, who, err
	}
	conn.SetReadDeadline(time.Time{})
	return conn, who, nil
}

// confirm dials the port of a process that seems dead. True: it is.
func (p *port) confirm(ctx context.Context, peer Peer, was incarnation) bool {
	for range redials {
		once, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		conn, is, err := p.watchOpen(once, peer)
		cancel()
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		case err == nil:
			conn.Close()
			return is != was
		case ctx.Err() != nil:
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(redialPause):
		}
	}
	return false
}
