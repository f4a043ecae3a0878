package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"appliance/raft/peerport"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
)

// Stream is hashicorp/raft's StreamLayer on our port.
type Stream struct {
	port     *peerport.Port
	addr     netip.AddrPort
	accepted chan net.Conn
	done     context.Context
	cancel   context.CancelFunc
	idle     idleConns
}

func NewStream(port *peerport.Port, addr netip.AddrPort) *Stream {
	s := &Stream{port: port, addr: addr, accepted: make(chan net.Conn)}
	s.done, s.cancel = context.WithCancel(context.Background())
	return s
}

// Handle gives conn to the library and returns when the library is done with it, because the port owns the
// connection.
func (s *Stream) Handle(conn net.Conn) {
	c := &lent{Conn: conn, back: make(chan struct{})}
	select {
	case s.accepted <- c:
		<-c.back
	case <-time.After(peerport.HandshakeTimeout): // raft has not been started yet
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

func (s *Stream) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.done.Done():
		return nil, net.ErrClosed
	}
}

func (s *Stream) Close() error {
	s.cancel()
	s.idle.close()
	return nil
}

func (s *Stream) Addr() net.Addr { return net.TCPAddrFromAddrPort(s.addr) }

func (s *Stream) Dial(address hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(string(address))
	if err != nil {
		return nil, err
	}
	if conn := s.idle.take(addr); conn != nil {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(s.done, timeout)
	defer cancel()
	return s.port.Open(ctx, addr, "", peerport.PreambleRaft)
}

// Rules are what the transport asks and tells before it passes a message on.
type Rules struct {
	// Heard notes a message that may become a grant: package lease, step 1.
	Heard func(from string, term uint64)
	// Granted counts an answer to a message that was sent at t0.
	Granted func(voter string, term uint64, t0 time.Duration)
	Now     func() time.Duration
	// Removed says that the group has removed this peer: it asks for no vote.
	Removed func() bool
	// Refusal is why a peer is granted nothing, and asked for no vote, or nil.
	Refusal func(peer string) error
}

// Transport is hashicorp/raft's network transport with the lease's book-keeping on both sides.
type Transport struct {
	*hraft.NetworkTransport
	rules    Rules
	rpcs     chan hraft.RPC
	stop     <-chan struct{}
	replicas replicas
}

// longestRest is how long a piece of the log waits for a peer that does not answer.
const longestRest = 10 * time.Second

// New returns the transport over s. RPCs have two heartbeats: with more, the retry after a healed partition
// would wait for TCP's own backoff; with less, a slow disk would look like a dead peer.
func New(s *Stream, heartbeat time.Duration, rules Rules, log hclog.Logger) *Transport {
	return &Transport{
		NetworkTransport: hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
			Stream: s, MaxPool: 3, Timeout: max(2*heartbeat, 250*time.Millisecond), Logger: log,
		}),
		rules: rules, rpcs: make(chan hraft.RPC), stop: s.done.Done(),
	}
}

// Behind is how many entries the log of id lacks of one that ends at last, as far as its answers in term
// tell.
func (t *Transport) Behind(id hraft.ServerID, term, last uint64) uint64 {
	return t.replicas.behind(id, term, last)
}

// SetHeartbeatHandler leaves the fast path off: heartbeats pass through raft's main loop, in line with votes.
// See step 2 in package lease.
func (t *Transport) SetHeartbeatHandler(func(hraft.RPC)) {}

func (t *Transport) Consumer() <-chan hraft.RPC { return t.rpcs }

// Relay passes RPCs on to raft, after they have been noted as possible grants.
func (t *Transport) Relay(ctx context.Context) error {
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
				t.rules.Heard(string(cmd.ID), cmd.Term)
			case *hraft.RequestVoteRequest:
				t.rules.Heard(string(cmd.ID), cmd.Term)
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

// refuses says why the sender of a message that may become a grant gets none, or nil.
func (t *Transport) refuses(command any) error {
	switch cmd := command.(type) {
	case *hraft.AppendEntriesRequest:
		return t.rules.Refusal(string(cmd.ID))
	case *hraft.RequestVoteRequest:
		return t.rules.Refusal(string(cmd.ID))
	case *hraft.RequestPreVoteRequest:
		return t.rules.Refusal(string(cmd.ID))
	}
	return nil
}

// AppendEntries sends a heartbeat or a piece of the log.
//
// The library doubles its pause after each piece of the log that it could not send, up to 10 s. A peer that
// is back gets no piece until the pause is over, and could not take over for so long. Heartbeats pause for
// half of their timeout at most. So after a failure a piece waits here until a heartbeat is answered, and is
// then sent again; the library counts at most one failure per longestRest.
func (t *Transport) AppendEntries(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest,
	resp *hraft.AppendEntriesResponse) error {
	err := t.appendEntries(id, target, args, resp)
	heartbeat := len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 &&
		args.LeaderCommitIndex == 0
	if err == nil || heartbeat || !t.replicas.awaitAnswer(id, longestRest, t.stop) {
		return err
	}
	return t.appendEntries(id, target, args, resp)
}

func (t *Transport) appendEntries(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest,
	resp *hraft.AppendEntriesResponse) error {
	t0 := t.rules.Now()
	// The library reuses resp; a field that is left over must not be taken for an answer.
	*resp = hraft.AppendEntriesResponse{}
	err := t.NetworkTransport.AppendEntries(id, target, args, resp)
	if err == nil {
		t.replicas.answered(id, resp.Term, resp.LastLog)
	}
	if err == nil && resp.Success && resp.Term == args.Term {
		t.rules.Granted(string(id), args.Term, t0)
	}
	return err
}

// AppendEntriesPipeline is left off: if an answer ends the library's pipeline while the next piece is being
// sent, the two goroutines of netPipeline wait for each other for ever, and Shutdown waits for them. The log
// of a group is short, and nothing waits for its second piece.
func (t *Transport) AppendEntriesPipeline(hraft.ServerID, hraft.ServerAddress) (hraft.AppendPipeline, error) {
	return nil, hraft.ErrPipelineReplicationNotSupported
}

var errRemoved = errors.New("removed from the group, so no vote is asked for")

func (t *Transport) RequestPreVote(id hraft.ServerID, target hraft.ServerAddress,
	args *hraft.RequestPreVoteRequest, resp *hraft.RequestPreVoteResponse) error {
	if t.rules.Removed() {
		return errRemoved
	}
	if err := t.rules.Refusal(string(id)); err != nil {
		return err
	}
	return t.NetworkTransport.RequestPreVote(id, target, args, resp)
}

func (t *Transport) RequestVote(id hraft.ServerID, target hraft.ServerAddress, args *hraft.RequestVoteRequest,
	resp *hraft.RequestVoteResponse) error {
	if t.rules.Removed() {
		return errRemoved
	}
	if err := t.rules.Refusal(string(id)); err != nil {
		return err
	}
	t0 := t.rules.Now()
	err := t.NetworkTransport.RequestVote(id, target, args, resp)
	if err == nil && resp.Granted && resp.Term == args.Term {
		t.rules.Granted(string(id), args.Term, t0)
	}
	return err
}

// Stand makes the local raft stand for election at once. Its requests for votes carry the mark that makes
// others vote although they know a leader.
func (t *Transport) Stand(ctx context.Context) error {
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
