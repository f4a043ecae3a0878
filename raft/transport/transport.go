package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"appliance/raft/fence"
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
	patience func() time.Duration
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
	conn := s.idle.take(addr)
	if conn == nil {
		ctx, cancel := context.WithTimeout(s.done, timeout)
		defer cancel()
		if conn, err = s.port.Open(ctx, addr, "", peerport.PreambleRaft); err != nil {
			return nil, err
		}
	}
	return patient{conn, s.patience}, nil
}

// patient gives an RPC longer while disks are slow.
type patient struct {
	net.Conn
	patience func() time.Duration
}

func (p patient) SetDeadline(t time.Time) error {
	if !t.IsZero() {
		t = t.Add(p.patience())
	}
	return p.Conn.SetDeadline(t)
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
	// Withheld is why this peer gives no vote and asks for none, or nil.
	Withheld func() error
	// Follow says whether a leader may be granted a lease in term.
	Follow func(leader string, term uint64) bool
	// Stamp is the group's name in messages to peer; ok is false for a version that cannot read it.
	Stamp func(peer string) (cluster string, ok bool)
	// Admits is why a message of peer is not for raft, or nil; it names cluster if it is stamped.
	Admits func(peer, cluster string, stamped bool) error
	// Patience is how long an election takes because of the disks, 0 if they are fast; nil: always 0.
	Patience func() time.Duration
	// Grown tells when something is added to the log here.
	Grown interface{ Next() <-chan struct{} }
}

// Transport is hashicorp/raft's network transport with the lease's book-keeping on both sides.
type Transport struct {
	*hraft.NetworkTransport
	rules    Rules
	consumer <-chan hraft.RPC // what has arrived
	rpcs     chan hraft.RPC   // what raft sees of it
	stop     <-chan struct{}
	replicas replicas
	kept     kept
	repeats  sync.WaitGroup
	voted    atomic.Int64 // when this peer last stood, or was asked for its vote, by rules.Now; 0: never
}

// repeatsPerHeartbeat is how often heartbeats are sent where no probes are: three in the length of a lease.
const repeatsPerHeartbeat = 10

// longestRest is how long a piece of the log waits for a peer that does not answer.
const longestRest = 10 * time.Second

// New returns the transport over s. RPCs have as long as raft's clocks: with more, the retry after a healed partition
// would wait for TCP's own backoff; with less, a slow disk or a busy host would look like a dead peer.
func New(s *Stream, heartbeat time.Duration, rules Rules, log hclog.Logger) *Transport {
	net := hraft.NewNetworkTransportWithConfig(&hraft.NetworkTransportConfig{
		Stream: s, MaxPool: 3, Timeout: max(HeartbeatsUntilTimeout*heartbeat, 250*time.Millisecond), Logger: log,
	})
	if rules.Patience == nil {
		rules.Patience = func() time.Duration { return 0 }
	}
	s.patience = rules.Patience
	return &Transport{
		NetworkTransport: net, rules: rules, consumer: net.Consumer(), rpcs: make(chan hraft.RPC), stop: s.done.Done(),
		kept: kept{heartbeat: heartbeat},
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
	t.relay(ctx)
	t.repeats.Wait()
	return nil
}

func (t *Transport) relay(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case rpc := <-t.consumer:
			if err := t.refuses(rpc.Command); err != nil {
				if rpc.Reader != nil {
					io.Copy(io.Discard, rpc.Reader) // a snapshot, before the next message on the connection
				}
				rpc.Respond(nil, err)
				continue
			}
			switch cmd := rpc.Command.(type) {
			case *hraft.AppendEntriesRequest:
				t.rules.Heard(string(cmd.ID), cmd.Term)
				t.voted.Store(0) // somebody leads
			case *hraft.RequestVoteRequest:
				t.rules.Heard(string(cmd.ID), cmd.Term)
				t.elected()
			}
			select {
			case t.rpcs <- rpc:
			case <-ctx.Done():
				rpc.Respond(nil, hraft.ErrRaftShutdown)
				return
			}
		}
	}
}

// refuses says why raft must not see a message, or nil, and takes the stamp off.
func (t *Transport) refuses(command any) error {
	header := headerOf(command)
	if header == nil {
		return nil
	}
	addr, cluster, stamped := fence.Unstamp(header.Addr)
	header.Addr = addr
	if err := t.rules.Admits(string(header.ID), cluster, stamped); err != nil {
		return err
	}
	switch cmd := command.(type) {
	case *hraft.AppendEntriesRequest:
		if err := t.rules.Refusal(string(cmd.ID)); err != nil {
			return err
		}
		if !t.rules.Follow(string(cmd.ID), cmd.Term) {
			return errSecondLeader
		}
	case *hraft.RequestPreVoteRequest:
		return errors.Join(t.rules.Refusal(string(header.ID)), t.rules.Withheld(), t.Elects())
	case *hraft.RequestVoteRequest:
		return errors.Join(t.rules.Refusal(string(header.ID)), t.rules.Withheld())
	}
	return nil
}

// Elects is why nobody else should stand for election now, or nil: with slow disks, votes that were asked for are
// still on their way, and a candidate that comes between would make all of them begin again.
func (t *Transport) Elects() error {
	voted := time.Duration(t.voted.Load())
	if voted == 0 || t.rules.Now()-voted >= t.rules.Patience() {
		return nil
	}
	return errElects
}

// elected notes that votes are asked for, or are about to be: the term is written first.
func (t *Transport) elected() { t.voted.Store(int64(t.rules.Now())) }

var errElects = errors.New("an election goes on, and a disk is slow")

var errSecondLeader = errors.New("this peer follows another leader of the same term; " +
	"a disk was restored from an older copy")

func headerOf(command any) *hraft.RPCHeader {
	switch cmd := command.(type) {
	case *hraft.AppendEntriesRequest:
		return &cmd.RPCHeader
	case *hraft.RequestVoteRequest:
		return &cmd.RPCHeader
	case *hraft.RequestPreVoteRequest:
		return &cmd.RPCHeader
	case *hraft.InstallSnapshotRequest:
		return &cmd.RPCHeader
	case *hraft.TimeoutNowRequest:
		return &cmd.RPCHeader
	}
	return nil
}

// stamped returns header with the group's name in it, if the peer id understands that.
func (t *Transport) stamped(id hraft.ServerID, header hraft.RPCHeader) hraft.RPCHeader {
	if cluster, ok := t.rules.Stamp(string(id)); ok {
		header.Addr = fence.Stamp(header.Addr, cluster)
	}
	return header
}

// AppendEntries sends a heartbeat or a piece of the log, unless it says nothing that the peer does not know.
//
// The library doubles its pause after each piece of the log that it could not send, up to 10 s. A peer that
// is back gets no piece until the pause is over, and could not take over for so long. Heartbeats pause for
// half of their timeout at most. So after a failure a piece waits here until a heartbeat is answered, and is
// then sent again; the library counts at most one failure per longestRest.
func (t *Transport) AppendEntries(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest,
	resp *hraft.AppendEntriesResponse) error {
	if t.rest(id, args) {
		if isHeartbeat(args) {
			t.check(id, target, args)
		}
		*resp = hraft.AppendEntriesResponse{Term: args.Term, LastLog: args.PrevLogEntry, Success: true}
		return nil
	}
	if isHeartbeat(args) {
		err := t.heartbeat(id, target, args, resp)
		if err == nil && resp.Success {
			t.repeat(id, target, args)
		}
		return err
	}
	err := t.appendEntries(id, target, args, resp)
	if err == nil || !t.replicas.awaitAnswer(id, longestRest, t.stop) {
		return err
	}
	return t.appendEntries(id, target, args, resp)
}

// repeat sends a heartbeat again and again in the pause that the library makes after it, for the lease: to a peer from
// which no datagrams come, the library's own are too far apart.
func (t *Transport) repeat(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest) {
	again, turn := *args, t.kept.turn(id)
	t.repeats.Go(func() {
		tick := time.NewTicker(t.kept.heartbeat / repeatsPerHeartbeat)
		defer tick.Stop()
		for range repeatsPerHeartbeat * HeartbeatsUntilTimeout / 5 { // the longest that the library pauses
			select {
			case <-tick.C:
			case <-t.stop:
				return
			}
			var resp hraft.AppendEntriesResponse
			if t.kept.isOver(id, turn) || t.spares(id, &again) || t.appendEntries(id, target, &again, &resp) != nil || !resp.Success {
				return
			}
		}
	})
}

func (t *Transport) appendEntries(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest,
	resp *hraft.AppendEntriesResponse) error {
	t0 := t.rules.Now()
	t.voted.Store(0) // this peer leads
	// The library reuses resp; a field that is left over must not be taken for an answer.
	*resp = hraft.AppendEntriesResponse{}
	own := *args
	own.RPCHeader = t.stamped(id, args.RPCHeader)
	err := t.NetworkTransport.AppendEntries(id, target, &own, resp)
	if err == nil {
		t.replicas.answered(id, resp.Term, resp.LastLog)
	}
	if err == nil && resp.Success && resp.Term == args.Term {
		t.rules.Granted(string(id), args.Term, t0)
		t.answered(id, args, true)
	} else {
		t.answered(id, args, false)
	}
	return err
}

// AppendEntriesPipeline is left off: if an answer ends the library's pipeline while the next piece is being
// sent, the two goroutines of netPipeline wait for each other for ever, and Shutdown waits for them. The log
// of a group is short, and nothing waits for its second piece.
func (t *Transport) AppendEntriesPipeline(hraft.ServerID, hraft.ServerAddress) (hraft.AppendPipeline, error) {
	return nil, hraft.ErrPipelineReplicationNotSupported
}

// InstallSnapshot sends a snapshot.
func (t *Transport) InstallSnapshot(id hraft.ServerID, target hraft.ServerAddress, args *hraft.InstallSnapshotRequest,
	resp *hraft.InstallSnapshotResponse, data io.Reader) error {
	own := *args
	own.RPCHeader = t.stamped(id, args.RPCHeader)
	return t.NetworkTransport.InstallSnapshot(id, target, &own, resp, data)
}

// TimeoutNow has a peer stand for election.
func (t *Transport) TimeoutNow(id hraft.ServerID, target hraft.ServerAddress, args *hraft.TimeoutNowRequest,
	resp *hraft.TimeoutNowResponse) error {
	own := *args
	own.RPCHeader = t.stamped(id, args.RPCHeader)
	return t.NetworkTransport.TimeoutNow(id, target, &own, resp)
}

// maySolicit is why id is not asked for its vote, or nil.
func (t *Transport) maySolicit(id hraft.ServerID) error {
	if t.rules.Removed() {
		return errRemoved
	}
	return errors.Join(t.rules.Refusal(string(id)), t.rules.Withheld())
}

var errRemoved = errors.New("removed from the group, so no vote is asked for")

func (t *Transport) RequestPreVote(id hraft.ServerID, target hraft.ServerAddress,
	args *hraft.RequestPreVoteRequest, resp *hraft.RequestPreVoteResponse) error {
	if err := errors.Join(t.maySolicit(id), t.Elects()); err != nil {
		return err
	}
	own := *args
	own.RPCHeader = t.stamped(id, args.RPCHeader)
	err := t.NetworkTransport.RequestPreVote(id, target, &own, resp)
	if err == nil && resp.Granted {
		t.elected()
	}
	return err
}

func (t *Transport) RequestVote(id hraft.ServerID, target hraft.ServerAddress, args *hraft.RequestVoteRequest,
	resp *hraft.RequestVoteResponse) error {
	if err := t.maySolicit(id); err != nil {
		return err
	}
	own := *args
	own.RPCHeader = t.stamped(id, args.RPCHeader)
	t0 := t.rules.Now()
	t.elected()
	err := t.NetworkTransport.RequestVote(id, target, &own, resp)
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
		t.elected()
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
