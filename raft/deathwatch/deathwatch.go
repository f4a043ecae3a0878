package deathwatch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"appliance/raft/peerport"
)

const (
	msgLeads   = 'T' // this process leads a term: 8 bytes follow
	msgSilent  = 'S' // it answers no more, in no term, but still hands over
	msgGoodbye = 'B' // it is about to end

	// redials is how often, and redialPause how far apart, the port of a process that seems dead is dialled:
	// the kernel closes its files one by one, so the listener may outlive the watch connection for a moment.
	redials     = 20
	redialPause = 2 * time.Millisecond
)

// An Incarnation tells one process of a peer from the next. It is random.
type Incarnation [8]byte

// Watched is the server's side: it knows who watches this process.
type Watched struct {
	self Incarnation

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	term  uint64
	gone  bool // goodbye has been said
}

// NewWatched returns the server's side of the process self.
func NewWatched(self Incarnation) *Watched {
	return &Watched{self: self, conns: make(map[net.Conn]struct{})}
}

// Handle serves one watch connection until it ends.
func (s *Watched) Handle(conn net.Conn) {
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		abort(conn)
		return
	}
	greeting := append([]byte(nil), s.self[:]...)
	greeting = binary.BigEndian.AppendUint64(append(greeting, msgLeads), s.term)
	if !send(conn, greeting) {
		s.mu.Unlock()
		abort(conn)
		return
	}
	s.conns[conn] = struct{}{}
	s.mu.Unlock()

	var none [1]byte
	conn.Read(none[:]) // returns when the watcher is gone, or breaks the protocol

	s.mu.Lock()
	_, open := s.conns[conn]
	delete(s.conns, conn)
	s.mu.Unlock()
	if open {
		abort(conn)
	}
}

// Leads tells the watchers of a tenure before the first answer is given in it.
func (s *Watched) Leads(term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term = term
	s.tell(binary.BigEndian.AppendUint64([]byte{msgLeads}, term))
}

// Silent comes after the last answer of this process. The peer that leadership is handed to then has nothing
// to wait out, even if this process has ended when it asks.
func (s *Watched) Silent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell([]byte{msgSilent})
}

// tell sends msg to every watcher, and cuts off one that does not take it: that one dials again and is told
// then. The caller holds mu.
func (s *Watched) tell(msg []byte) {
	for conn := range s.conns {
		if !send(conn, msg) {
			delete(s.conns, conn)
			abort(conn)
		}
	}
}

// Goodbye comes last of all.
func (s *Watched) Goodbye() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	for conn := range s.conns {
		delete(s.conns, conn)
		if send(conn, []byte{msgGoodbye}) {
			conn.Close()
		} else {
			abort(conn)
		}
	}
}

// send writes a few bytes, which fit into the socket's buffer or not at all: a watcher that does not read
// must not delay a tenure.
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
	raw.Close() // not conn: TLS would send its close_notify first
}

// A Death is what a watcher has proved, or has been told by the process itself.
type Death struct {
	Peer string
	Term uint64 // the last that it led, 0 for none
	Told bool   // by the process itself
}

// Watch keeps the watch connection to the peer id at addr until ctx ends, and dials again after retry. It
// calls silent when the process there has said that it answers no more, and dead when it has ended.
func Watch(
	ctx context.Context, port *peerport.Port, id string, addr netip.AddrPort, retry time.Duration,
	silent, dead func(Death),
) {
	w := watcher{port: port, id: id, addr: addr}
	for ctx.Err() == nil {
		who, term, err := w.once(ctx, silent)
		switch {
		case errors.Is(err, errGoodbye), errors.Is(err, errVanished) && w.confirm(ctx, who, retry):
			dead(Death{Peer: id, Term: term, Told: errors.Is(err, errGoodbye)})
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
}

// watcher is the client's side of one peer's watch connections.
type watcher struct {
	port *peerport.Port
	id   string
	addr netip.AddrPort
}

var (
	errVanished = errors.New("end of stream without goodbye")
	errGoodbye  = errors.New("goodbye")
)

func (w watcher) once(ctx context.Context, silent func(Death)) (who Incarnation, term uint64, err error) {
	conn, who, err := w.open(ctx)
	if err != nil {
		return who, 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		var msg [9]byte
		if _, err := io.ReadFull(conn, msg[:1]); err != nil {
			// crypto/tls says io.EOF for a bare FIN between records too. A close_notify cannot come here:
			// goodbye is sent before it.
			if err == io.EOF {
				err = errVanished
			}
			return who, term, err
		}
		switch msg[0] {
		case msgLeads:
		case msgSilent:
			silent(Death{Peer: w.id, Term: term, Told: true})
			continue
		case msgGoodbye:
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

func (w watcher) open(ctx context.Context) (net.Conn, Incarnation, error) {
	ctx, cancel := context.WithTimeout(ctx, peerport.HandshakeTimeout)
	defer cancel()
	var who Incarnation
	conn, err := w.port.Open(ctx, w.addr, w.id, peerport.PreambleWatch)
	if err != nil {
		return nil, who, err
	}
	conn.SetReadDeadline(time.Now().Add(peerport.HandshakeTimeout))
	if _, err := io.ReadFull(conn, who[:]); err != nil {
		conn.Close()
		return nil, who, err
	}
	conn.SetReadDeadline(time.Time{})
	return conn, who, nil
}

// confirm dials the port of a process that seems dead, and waits for an answer for as long as patience each time. True:
// it is.
func (w watcher) confirm(ctx context.Context, was Incarnation, patience time.Duration) bool {
	for range redials {
		once, cancel := context.WithTimeout(ctx, patience)
		conn, is, err := w.open(once)
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
