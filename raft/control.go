package raft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/auth"
	"appliance/raft/feed"
	"appliance/raft/fence"
	"appliance/raft/lease"
	"appliance/raft/peerport"
	"appliance/raft/settings"
)

type operation string

const (
	opHello    operation = "hello"    // who are you, what do you know
	opAccount  operation = "account"  // what have you granted
	opAdmit    operation = "admit"    // take this peer into the group
	opPropose  operation = "propose"  // change these settings
	opTransfer operation = "transfer" // hand over to this peer
	opView     operation = "view"     // what you show of yourself
	opTry      operation = "try"      // try me as a client would, and say what you serve
	opAdd      operation = "add"      // expect this peer
	opRemove   operation = "remove"   // the peer To is no member any more
	opPromote  operation = "promote"  // the peer To votes
	opDemote   operation = "demote"   // the peer To does not vote
	opFollow   operation = feed.Op    // what is new since After, for workers
)

type request struct {
	Op     operation         `json:"op"`
	Peer   *Peer             `json:"peer,omitempty"`
	Change *settings.Command `json:"change,omitempty"`
	To     string            `json:"to,omitempty"`
	From   string            `json:"from,omitempty"`
	// Heartbeat, in a hello, is that of the peer that asks, in nanoseconds.
	Heartbeat time.Duration `json:"heartbeat,omitempty"`
	// Fitness, in a hello, is that of the peer that asks; nil is from a version that does not tell.
	Fitness *Fitness `json:"claim,omitempty"`
	// Hello, in a hello, is what the peer that asks says of itself.
	Hello *hello `json:"hello,omitempty"`
	// Cluster is the group of the peer that asks.
	Cluster string `json:"cluster,omitempty"`
	Force   bool   `json:"force,omitempty"`
	After   string `json:"after,omitempty"`
	// Version, in a question of a worker, is that of its program.
	Version string `json:"version,omitempty"`
	// Joins is set by a peer that was told to join, so nobody needs to list it.
	Joins bool `json:"joins,omitempty"`
	// Forwarded requests are not forwarded again.
	Forwarded bool `json:"forwarded,omitempty"`
	// Body is the question of a Group.Try.
	Body []byte `json:"body,omitempty"`
}

type reply struct {
	Error   string         `json:"error,omitempty"`
	Hello   *hello         `json:"hello,omitempty"`
	Feed    *feed.Feed     `json:"feed,omitempty"`
	Account *lease.Account `json:"account,omitempty"`
	// Cluster is the group that the account is of.
	Cluster string `json:"cluster,omitempty"`
	// Datagrams is the key for datagrams to this process: package detector.
	Datagrams []byte `json:"datagrams,omitempty"`
	// Twice, beside an error, says that another process with the id of the one that asks lives.
	Twice bool   `json:"twice,omitempty"`
	View  []byte `json:"view,omitempty"`
	Body  []byte `json:"body,omitempty"`
}

// refusal is another peer's reason to say no. It is about the question and not about the connection, so
// asking again does not help.
type refusal string

func (r refusal) Error() string { return string(r) }

// ask asks on the link's own connection.
func ask(ctx context.Context, l *peerport.ControlLink, r request) (reply, error) {
	return answered(ctx, l.Ask, r)
}

// askApart asks on a connection of its own, for what takes long.
func askApart(ctx context.Context, l *peerport.ControlLink, r request) (reply, error) {
	return answered(ctx, l.AskApart, r)
}

func answered(ctx context.Context, ask func(context.Context, any, any) error, r request) (rep reply, err error) {
	if err = ask(ctx, r, &rep); err == nil && rep.Error != "" {
		err = refusal(rep.Error)
	}
	return rep, err
}

// answer answers one control request, which came from the address at.
func (g *Group) answer(ctx context.Context, from auth.Identity, at netip.Addr, r request) reply {
	var rep reply
	var err error
	if from.Role != auth.Peer && r.Op != opFollow {
		return reply{Error: fmt.Sprintf("a %s may not ask for %q", from.Role, r.Op)}
	}
	if own := g.cluster(); r.Cluster != "" && own != "" && r.Cluster != own {
		return reply{Error: fmt.Sprintf("peer %s belongs to another group (%.8s, not %.8s)", g.cfg.ID, own, r.Cluster)}
	}
	switch r.Op {
	case opFollow:
		if from.Role != auth.Peer {
			g.feed.Note(from.ID, r.Version)
		}
		rep.Feed, err = g.feed.Serve(ctx, r.After)
	case opHello:
		if from.ID != "" {
			r.From = from.ID
		}
		if r.From == g.cfg.ID && from.Role == auth.Peer {
			g.hearTwin(at, r.Hello)
		} else if r.From != "" && from.Role == auth.Peer {
			if r.Hello != nil && r.Hello.ID == r.From {
				if err = g.livesElsewhere(ctx, *r.Hello); err != nil {
					rep.Twice = true
					break
				}
				if err = g.learnFence(*r.Hello, at); err != nil {
					break
				}
			}
			g.learnHeartbeat(r.From, r.Heartbeat)
			if r.Fitness != nil {
				g.learnFitness(r.From, *r.Fitness)
			}
			if r.Hello != nil && r.Hello.ID == r.From {
				g.checkSplit(*r.Hello)
				_ = g.followHeartbeat(*r.Hello, 0) // it answers until it has left
			}
		}
		h := g.hello()
		h.Removed = g.removalOf(r.From)
		if b := g.fence.ReachedBy(r.From); b.Backwards != "" {
			h.Backwards = &b
		}
		rep.Hello = &h
		// A peer that has the key gets grants: package lease.
		if from.Role == auth.Peer && g.heartbeats.Fits(r.Heartbeat) &&
			!errors.Is(g.fence.Refusal(r.From), fence.ErrStranger) {
			rep.Datagrams = g.detector.KeyFor(r.From)
		}
	case opAccount:
		raft := g.running()
		if raft == nil {
			err = errors.New("this peer has not started yet")
			break
		}
		reached := raft.CurrentTerm()
		answering := g.answersBefore(ctx, reached)
		a := g.grants.Account(reached)
		a.Lease, a.Answering = g.cfg.span(), answering
		rep.Account, rep.Cluster = &a, g.cluster()
	case opView:
		rep.View, err = g.view(from)
	case opTry:
		if g.cfg.Tried == nil {
			err = errors.New("this peer tries nobody")
			break
		}
		rep.Body, err = g.cfg.Tried(ctx, r.Body)
	case opAdmit, opPropose, opTransfer, opAdd, opRemove, opPromote, opDemote:
		if from.Role != auth.Peer {
			err = fmt.Errorf("a %s may not ask for this", from.Role)
			break
		}
		if r.Op == opAdmit && !r.Forwarded && r.Peer != nil && from.ID != "" && from.ID != r.Peer.ID {
			err = fmt.Errorf("peer %q asks in the name of %q", from.ID, r.Peer.ID)
			break
		}
		rep, err = g.atLeader(ctx, r)
	default:
		err = fmt.Errorf("unknown request %q: this peer runs version %s", r.Op, g.cfg.Version)
	}
	if err != nil {
		rep.Error = err.Error()
	}
	return rep
}

// patience bounds one change of configuration or settings.
const patience = 5 * time.Second

// atLeader has the leader do what only it can, here or on another peer.
func (g *Group) atLeader(ctx context.Context, r request) (reply, error) {
	raft := g.running()
	if raft == nil {
		return reply{}, errors.New("this peer is not in the group yet; try again when it is")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	// A request that comes during an election waits for its end.
	election := time.After(10 * g.cfg.Heartbeat)
	for {
		changed := g.change.Next()
		if _, ok := g.leads(); ok && (r.Op == opRemove || r.Op == opDemote) && r.To == g.cfg.ID && g.others() > 0 {
			if err := g.stepAside(ctx, r); err != nil {
				return reply{}, err
			}
			r.Forwarded = false // the next leader is to do it
			continue
		} else if ok {
			return reply{}, g.lead(ctx, r)
		}
		_, id := raft.LeaderWithID()
		if l := g.links.to(string(id)); l != nil && !r.Forwarded {
			r.Forwarded, r.Cluster = true, g.cluster()
			return askApart(ctx, l, r)
		}
		select {
		case <-changed:
		case <-election:
			return reply{}, errors.New("the group has no leader at this moment; try again, and see 'appliance " +
				"status' for which peers are missing")
		case <-ctx.Done():
			return reply{}, ctx.Err()
		}
	}
}

// lead does a request as the leader.
func (g *Group) lead(ctx context.Context, r request) error {
	switch {
	case r.Op == opAdmit && r.Peer != nil:
		return g.admit(ctx, *r.Peer, r.Joins)
	case r.Op == opAdd && r.Peer != nil, (r.Op == opRemove || r.Op == opPromote || r.Op == opDemote) && r.To != "":
		return g.changeMembers(ctx, r)
	case r.Op == opPropose && r.Change != nil:
		return g.apply(*r.Change)
	case r.Op == opTransfer:
		return g.transfer(ctx, r.To, HandedOver)
	}
	return fmt.Errorf("incomplete request %q", r.Op)
}

// Propose changes the settings that the group shares: set, then remove. It returns when a majority has them
// on disk.
func (g *Group) Propose(ctx context.Context, set map[string]string, remove ...string) error {
	for _, key := range append(slices.Collect(maps.Keys(set)), remove...) {
		if settings.Reserved(key) {
			return fmt.Errorf("the setting %q belongs to the group itself; use another name", key)
		}
	}
	_, err := g.atLeader(ctx, request{Op: opPropose, Change: &settings.Command{Set: set, Remove: remove}})
	return err
}

func (g *Group) propose(ctx context.Context, c settings.Command) error {
	_, err := g.atLeader(ctx, request{Op: opPropose, Change: &c})
	return err
}

// Settings are the settings that the group shares, as this peer knows them.
func (g *Group) Settings() map[string]string { return g.settings.All() }

func (g *Group) apply(c settings.Command) error {
	c.Version = settings.FormatVersion
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	asked := time.Now()
	var f hraft.ApplyFuture
	err = g.command(func(r *hraft.Raft) hraft.Future {
		f = r.Apply(data, patience)
		return f
	})
	if err != nil {
		return fmt.Errorf("changing the group's settings: %w", err)
	}
	took := time.Since(asked)
	g.tally(func(c *Counters) { c.Commits, c.CommitTime = c.Commits+1, c.CommitTime+took })
	if g.cfg.OnCommit != nil {
		g.cfg.OnCommit(took)
	}
	if err, ok := f.Response().(error); ok {
		return err
	}
	return nil
}

// View asks another peer for what its Config.View returns. The group carries it and does not look into it.
func (g *Group) View(ctx context.Context, id string) ([]byte, error) {
	l := g.links.to(id)
	if l == nil {
		return nil, fmt.Errorf("peer %q is not known here", id)
	}
	rep, err := askApart(ctx, l, request{Op: opView})
	if err != nil {
		return nil, err
	}
	if len(rep.View) == 0 {
		return nil, fmt.Errorf("peer %s shows nothing of itself", id)
	}
	return rep.View, nil
}

// Try asks another peer a question for its Config.Tried. The group carries it and does not look into it. It has a
// connection of its own, since an answer may take a while, and keeps it between questions.
func (g *Group) Try(ctx context.Context, id string, question []byte) (answer []byte, err error) {
	l := g.links.to(id)
	if l == nil {
		return nil, fmt.Errorf("peer %q is not known here", id)
	}
	rep, err := ask(ctx, l.Beside(), request{Op: opTry, From: g.cfg.ID, Body: question})
	return rep.Body, err
}

// view answers opView.
func (g *Group) view(from auth.Identity) ([]byte, error) {
	switch {
	case from.Role != auth.Peer:
		return nil, fmt.Errorf("a %s may not ask for this", from.Role)
	case g.cfg.View == nil:
		return nil, errors.New("this peer shows nothing of itself")
	}
	return g.cfg.View()
}

// Publish gives workers something to follow: JSON that is the same on every peer when the peers want the
// same. Index is what Group.Index was before data was made, so that workers can tell an older one from a
// newer.
func (g *Group) Publish(data []byte, index uint64) {
	g.feed.Publish(data, g.settings.Get(settings.ClusterKey), index)
}

// Index is the place in the group's log up to which Settings has it. It is the same on every peer, grows for
// as long as the group has its name, and is 0 before there is anything.
func (g *Group) Index() uint64 { return g.settings.Index() }
