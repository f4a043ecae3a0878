package raft

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"

	"appliance/raft/lease"
)

// stream is hashicorp/raft's StreamLayer on our port.
type stream struct {
	p        *port
	addr     netip.AddrPort
	accepted chan net.Conn
	done     context.Context
	cancel   context.CancelFunc
	spares   spares
}

func newStream(p *port, addr netip.AddrPort) *stream {
	s := &stream{p: p, addr: addr, accepted: make(chan net.Conn)}
	s.done, s.cancel = context.WithCancel(context.Background())
	return s
}

// handle gives conn to the library and returns when the library is done with
// it, because the port owns the connection.
func (s *stream) handle(conn net.Conn, _ identity) {
	c := &lent{Conn: conn, back: make(chan struct{})}
	select {
	case s.accepted <- c:
		<-c.back
	case <-time.After(handshakeTimeout): // raft has not been started yet
	case <-s.done.Done():
	}
}

// lent tells when it has been closed.
type lent struct {
	net.Conn
	back   chan struct{}
	closed bool // by the one goroutine of the library that owns it
}

func (l *lent) Close() error {
	if !l.closed {
		l.closed = true
		close(l.back)
	}
	return l.Conn.Close()
}

func (s *stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.done.Done():
		return nil, net.ErrClosed
	}
}

func (s *stream) Close() error {
	s.cancel()
	s.spares.close()
	return nil
}

func (s *stream) Addr() net.Addr { return net.TCPAddrFromAddrPort(s.addr) }

func (s *stream) Dial(address hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(string(address))
	if err != nil {
		return nil, err
	}
	if conn := s.spares.take(addr); conn != nil {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(s.done, timeout)
	defer cancel()
	return s.p.open(ctx, addr, "", preambleRaft)
}

// transport is hashicorp/raft's network transport with the lease's book-keeping
// on both sides (see package lease), and a door for TimeoutNow.
type transport struct {
	*hraft.NetworkTransport
	lease  *lease.Lease
	grants *lease.Grants
	now    lease.Clock
	rpcs   chan hraft.RPC
	quiet  func() bool // this peer has been removed: it asks for no vote
	// refusal is why a peer is granted nothing, and asked for no vote: package lease
	refusal func(peer string) error
	stop    <-chan struct{}

	replicas replicas
}

// longestRest is how long a copy of the log waits for a peer that does not answer.
const longestRest = 10 * time.Second

// newTransport gives RPCs two heartbeats: longer, and the retry after a healed
// partition would have to wait for TCP's own backoff; shorter, and a slow disk looks like a
// dead peer.
func newTransport(s *stream, heartbeat time.Duration, l *lease.Lease, gr *lease.Grants, now lease.Clock, log hclog.Logger) *transport {
	return &transport{
		NetworkTransport: hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
			Stream: s, MaxPool: 3, Timeout: max(2*heartbeat, 250*time.Millisecond), Logger: log,
		}),
		lease: l, grants: gr, now: now, rpcs: make(chan hraft.RPC), stop: s.done.Done(),
	}
}

// SetHeartbeatHandler leaves the fast path off: heartbeats go through raft's main
// loop, in line with votes. See step 2 in package lease.
func (t *transport) SetHeartbeatHandler(func(hraft.RPC)) {}

func (t *transport) Consumer() <-chan hraft.RPC { return t.rpcs }

// relay passes RPCs on to raft, after they are in the ledger.
func (t *transport) relay(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case rpc := <-t.NetworkTransport.Consumer():
			if err := t.refuses(rpc.Command); err != nil {
				rpc.Respond(nil, err)
				continue
			}
			switch cmd := rpc.Command.(type) {
			case *hraft.AppendEntriesRequest:
				t.grants.Heard(string(cmd.ID), cmd.Term)
			case *hraft.RequestVoteRequest:
				t.grants.Heard(string(cmd.ID), cmd.Term)
			}
			select {
			case t.rpcs <- rpc:
			case <-ctx.Done():
				rpc.Respond(nil, hraft.ErrRaftShutdown)
				return nil
			}
		}
	}
}

// refuses says why the sender of what may become a grant is not to have it.
func (t *transport) refuses(command any) error {
	switch cmd := command.(type) {
	case *hraft.AppendEntriesRequest:
		return t.refusal(string(cmd.ID))
	case *hraft.RequestVoteRequest:
		return t.refusal(string(cmd.ID))
	case *hraft.RequestPreVoteRequest:
		return t.refusal(string(cmd.ID))
	}
	return nil
}

// AppendEntries sends a heartbeat or a piece of the log.
//
// The library doubles its rest after each piece that could not be sent, up to
// 10 s, and a peer that is back gets none until the rest is over: it
// could not take over for so long. Heartbeats rest for half of their timeout at
// most. So after a failure a piece waits here for a heartbeat to be answered,
// and then goes again; the library counts one failure at most for each longestRest.
func (t *transport) AppendEntries(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) error {
	err := t.appendEntries(id, target, args, resp)
	heartbeat := len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && args.LeaderCommitIndex == 0
	if err == nil || heartbeat || !t.replicas.awaitAnswer(id, longestRest, t.stop) {
		return err
	}
	return t.appendEntries(id, target, args, resp)
}

func (t *transport) appendEntries(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) error {
	t0 := t.now()
	// The library reuses resp; a field that is left over must not be taken for an answer.
	*resp = hraft.AppendEntriesResponse{}
	err := t.NetworkTransport.AppendEntries(id, target, args, resp)
	if err == nil {
		t.replicas.answered(id, resp.Term, resp.LastLog)
	}
	if err == nil && resp.Success && resp.Term == args.Term {
		t.lease.Grant(string(id), args.Term, t0)
	}
	return err
}

// AppendEntriesPipeline is left off: if an answer ends the library's pipeline
// while the next piece is being sent, the two goroutines of netPipeline wait for
// each other for ever, and so does Shutdown for them. The log of a group is
// short, and nothing waits for a second piece of it.
func (t *transport) AppendEntriesPipeline(hraft.ServerID, hraft.ServerAddress) (hraft.AppendPipeline, error) {
	return nil, hraft.ErrPipelineReplicationNotSupported
}

var errQuiet = errors.New("removed from the group, so no vote is asked for")

func (t *transport) RequestPreVote(id hraft.ServerID, target hraft.ServerAddress, args *hraft.RequestPreVoteRequest, resp *hraft.RequestPreVoteResponse) error {
	if t.quiet() {
		return errQuiet
	}
	if err := t.refusal(string(id)); err != nil {
		return err
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

func (t *transport) RequestVote(id hraft.ServerID, target hraft.ServerAddress, args *hraft.RequestVoteRequest, resp *hraft.RequestVoteResponse) error {
	if t.quiet() {
		return errQuiet
	}
	if err := t.refusal(string(id)); err != nil {
		return err
	}
	t0 := t.now()
	err := t.NetworkTransport.RequestVote(id, target, args, resp)
	if err == nil && resp.Granted && resp.Term == args.Term {
		t.lease.Grant(string(id), args.Term, t0)
	}
	return err
}

// timeoutNow makes the local raft stand for election at once, with the mark on its requests for
// votes that makes others vote although they know a leader.
func (t *transport) timeoutNow(ctx context.Context) error {
	answer := make(chan hraft.RPCResponse, 1)
	rpc := hraft.RPC{
		Command:  &hraft.TimeoutNowRequest{RPCHeader: hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersionMax}},
		RespChan: answer,
	}
	select {
	case t.rpcs <- rpc:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case r := <-answer:
		return r.Error
	case <-ctx.Done():
		return errors.Join(errors.New("raft did not react"), ctx.Err())
	}
}
