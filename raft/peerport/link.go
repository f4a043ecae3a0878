package peerport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A ControlLink is the control connection to one peer, kept open between questions.
type ControlLink struct {
	// ID is who has to answer; empty: any peer of the group.
	ID   string
	Addr netip.AddrPort
	// Changed, if set, is called when the peer comes into reach or goes out of it, in order. It must not
	// block.
	Changed func(LinkState)

	port  *Port
	quiet bool          // keep-alive is rare
	turn  chan struct{} // one token: waiting for this lock can be given up
	// The following belong to the goroutine that has the token.
	conn   net.Conn
	lines  *bufio.Reader
	closed bool

	mu     sync.Mutex
	state  LinkState
	beside *ControlLink
}

// A LinkState says whether a peer answered when it was last asked.
type LinkState struct {
	Connected bool
	Since     time.Time // of Connected; zero: never connected
	Problem   error     // why the peer is not connected, or nil
	RoundTrip time.Duration
	// Wire is the least time that the kernel has seen a segment and its acknowledgement take in the last minutes, 0 if
	// it does not tell: how far the peer is, however busy the processes are.
	Wire time.Duration
}

// Link returns a control connection to the peer id at addr. It dials with the first question.
func (p *Port) Link(id string, addr netip.AddrPort) *ControlLink {
	l := &ControlLink{ID: id, Addr: addr, port: p, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// State is what is known of the peer.
func (l *ControlLink) State() LinkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// Ask asks. A connection that turns out to have ended is replaced once.
func (l *ControlLink) Ask(ctx context.Context, question, answer any) error {
	return l.ask(ctx, question, answer, true)
}

// AskOnce is Ask without a second attempt if the connection has ended. It is for those who have other peers
// to ask.
func (l *ControlLink) AskOnce(ctx context.Context, question, answer any) error {
	return l.ask(ctx, question, answer, false)
}

func (l *ControlLink) ask(ctx context.Context, question, answer any, again bool) error {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.closed {
		return fmt.Errorf("peer %s at %s: %w", l.ID, l.Addr, net.ErrClosed) // and says nothing of the peer
	}
	kept := l.conn != nil
	err := l.exchange(ctx, question, answer)
	if err != nil && kept && again && ctx.Err() == nil {
		reflect.ValueOf(answer).Elem().SetZero() // nothing of a first answer counts
		err = l.exchange(ctx, question, answer)
	}
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("peer %s at %s: %w", l.ID, l.Addr, err) // given up: that proves nothing
	}
	l.mu.Lock()
	was := l.state.Connected
	l.state.Connected, l.state.Problem = err == nil, err
	if was != l.state.Connected {
		l.state.Since = time.Now()
	}
	now := l.state
	l.mu.Unlock()
	if was != now.Connected && l.Changed != nil {
		l.Changed(now)
	}
	if err != nil {
		return fmt.Errorf("peer %s at %s: %w", l.ID, l.Addr, err)
	}
	return nil
}

func (l *ControlLink) exchange(ctx context.Context, question, answer any) (err error) {
	if l.conn == nil {
		conn, err := l.port.Open(ctx, l.Addr, l.ID, PreambleControl)
		if err != nil {
			return err
		}
		if l.quiet {
			Quiet(conn)
		}
		l.conn, l.lines = conn, bufio.NewReader(conn)
	}
	conn := l.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		// After a failure, or if the deadline is already set, the connection is useless: a late answer would
		// answer the next question.
		if !stop() || err != nil {
			conn.Close()
			l.conn = nil
		}
	}()
	asked := time.Now()
	if err := WriteLine(conn, question); err != nil {
		return err
	}
	if err := ReadLine(l.lines, answer); err != nil {
		// With TLS 1.3 the first answer tells whether the peer has accepted our certificate.
		err = l.port.explain(err)
		l.port.tellForeign(l.Addr.Addr().Unmap(), err)
		return err
	}
	l.mu.Lock()
	l.state.RoundTrip, l.state.Wire = time.Since(asked), wire(conn)
	l.mu.Unlock()
	return nil
}

// wire is LinkState.Wire of conn.
func wire(conn net.Conn) (least time.Duration) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(interface{ Wire() time.Duration }); ok {
		return c.Wire()
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && info.Min_rtt != math.MaxUint32 { // tcp_min_rtt in net/tcp.h: nothing has been measured yet
			least = time.Duration(info.Min_rtt) * time.Microsecond
		}
	})
	return least
}

// AskApart asks on a new connection, for what takes long: the kept one has to stay free for a new leader's
// questions.
func (l *ControlLink) AskApart(ctx context.Context, question, answer any) error {
	own := l.port.Link(l.ID, l.Addr)
	defer own.Close()
	return own.Ask(ctx, question, answer)
}

// Beside is a second connection to the same peer that is kept too, for regular questions that take long. It ends with
// the first.
func (l *ControlLink) Beside() *ControlLink {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.beside == nil {
		l.beside = l.port.Link(l.ID, l.Addr)
		l.beside.quiet = true
	}
	return l.beside
}

// Close ends the connection, after the questions that are under way.
func (l *ControlLink) Close() {
	<-l.turn
	l.closed = true
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	l.turn <- struct{}{}
	l.mu.Lock()
	beside := l.beside
	l.mu.Unlock()
	if beside != nil {
		beside.Close()
	}
}
