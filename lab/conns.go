package lab

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// LongConns says which connections to hold open.
type LongConns struct {
	// Target is where they go: Servers, directly or through a VIP.
	Target netip.AddrPort
	// N is their number.
	N int
	// TLS, if set, is used on each.
	TLS *tls.Config
	// Every is the time between two blocks that each connection sends and
	// wants back. Zero means 10 ms.
	Every time.Duration
	// Patience bounds the opening of each. Zero means that only the context
	// of all does.
	Patience time.Duration
}

// Conns are open connections with data in flight in both directions: each
// sends numbered blocks, and the server sends them back.
type Conns struct {
	all []*longConn
	wg  sync.WaitGroup
}

type longConn struct {
	server string
	conn   net.Conn
	stop   chan struct{}

	mu     sync.Mutex
	blocks uint64 // came back so far
	err    error
}

// A ConnCount is the state of Conns at one time.
type ConnCount struct {
	// OK connections moved data, Broken ones ended with an error or wrong
	// data, Hung ones did neither.
	OK, Broken, Hung int
	// Lost are the connections that are not OK.
	Lost []LostConn
}

// A LostConn is a connection that is not OK.
type LostConn struct {
	// Server is the backend that it went to.
	Server string
	// Err is nil if the connection hangs.
	Err error
}

// OpenConns opens the connections, one after the other, and returns when
// data flows in all of them.
func (n *Machine) OpenConns(ctx context.Context, l LongConns) (*Conns, error) {
	if l.Every == 0 {
		l.Every = 10 * time.Millisecond
	}
	cs := &Conns{}
	for i := range l.N {
		c, err := n.open(ctx, l)
		if err != nil {
			cs.Close()
			return nil, fmt.Errorf("lab: open connection %d of %d to %s: %w", i+1, l.N, l.Target, err)
		}
		cs.all = append(cs.all, c)
		cs.wg.Go(func() { c.write(l.Every) })
		cs.wg.Go(c.read)
	}
	return cs, nil
}

func (n *Machine) open(ctx context.Context, l LongConns) (*longConn, error) {
	if l.Patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.Patience)
		defer cancel()
	}
	conn, err := n.Dial(ctx, l.Target)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if l.TLS != nil {
		conn = tls.Client(conn, l.TLS)
	}
	a, err := Ask(conn, "echo")
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &longConn{server: a.Server, conn: conn, stop: make(chan struct{})}, nil
}

// block is the size of what is sent at once: a number and some weight.
const block = 256

func (c *longConn) write(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	buf := make([]byte, block)
	for i := uint64(0); ; i++ {
		binary.BigEndian.PutUint64(buf, i)
		if _, err := c.conn.Write(buf); err != nil {
			c.fail(err)
			return
		}
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
	}
}

func (c *longConn) read() {
	buf := make([]byte, block)
	for i := uint64(0); ; i++ {
		if _, err := io.ReadFull(c.conn, buf); err != nil {
			c.fail(err)
			return
		}
		if got := binary.BigEndian.Uint64(buf); got != i {
			c.fail(fmt.Errorf("block %d came back as %d", i, got))
			return
		}
		c.mu.Lock()
		c.blocks = i + 1
		c.mu.Unlock()
	}
}

func (c *longConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

func (c *longConn) state() (blocks uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocks, c.err
}

// Await counts the connections once data has come back on each that is not broken,
// and the given time has passed. When ctx ends first, those without data count as
// hung. TCP resends lost data after 200 ms, then 400 ms and so on, so give ctx longer
// than the outage lasted.
func (cs *Conns) Await(ctx context.Context, least time.Duration) ConnCount {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for before := cs.blocks(); ; {
		n := cs.since(before)
		if n.Hung == 0 && time.Since(began) >= least {
			return n
		}
		select {
		case <-ctx.Done():
			return n
		case <-tick.C:
		}
	}
}

func (cs *Conns) blocks() []uint64 {
	blocks := make([]uint64, len(cs.all))
	for i, c := range cs.all {
		blocks[i], _ = c.state()
	}
	return blocks
}

func (cs *Conns) since(before []uint64) (n ConnCount) {
	for i, c := range cs.all {
		blocks, err := c.state()
		switch {
		case err != nil:
			n.Broken++
		case blocks == before[i]:
			n.Hung++
		default:
			n.OK++
			continue
		}
		n.Lost = append(n.Lost, LostConn{c.server, err})
	}
	return n
}

// Close ends all connections and waits for them. It may be called again.
func (cs *Conns) Close() {
	for _, c := range cs.all {
		close(c.stop)
		c.conn.Close()
	}
	cs.all = nil
	cs.wg.Wait()
}
