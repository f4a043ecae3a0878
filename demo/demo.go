package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// RunOptions say how the demo runs.
type RunOptions struct {
	// Binary is the appliance that is shown, usually this program itself.
	Binary string
	// Out is where it is shown: live if it is a terminal, else line by line.
	Out io.Writer
	// Keep leaves everything running after the story, until ctx ends.
	Keep bool
	// IPv6 makes it a network without any IPv4.
	IPv6 bool
}

// Patience with each step of the story, far beyond what each should take.
const patience = 60 * time.Second

// Run shows how three appliances keep an address alive when the holder is
// killed. It needs root for its network namespaces, and leaves nothing behind
// when it returns. The error says what went wrong, such as that requests did not flow
// again.
func Run(ctx context.Context, o RunOptions) (err error) {
	s := &show{screen: newScreen(o.Out), began: time.Now()}
	s.cast, err = assemble(ctx, o)
	defer func() { err = errors.Join(err, s.cast.dismiss()) }()
	if err != nil {
		return err
	}

	story, stop := context.WithCancel(ctx)
	group, story := errgroup.WithContext(story)
	group.Go(func() error {
		s.paint(story)
		return nil
	})
	group.Go(func() error {
		defer stop()
		return s.play(story, o.Keep)
	})
	err = group.Wait()
	s.draw()
	switch {
	case ctx.Err() != nil && s.told:
		return nil // the end of --keep
	case ctx.Err() != nil:
		return fmt.Errorf("the demo was interrupted: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("%w%s", err, s.cast.logs())
	}
	return nil
}

// show is the running demo.
type show struct {
	cast   *cast
	screen *screen
	began  time.Time
	told   bool // the story is over, and --keep goes on

	mu     sync.Mutex
	events []event
	views  []peerView
}

func (s *show) say(format string, args ...any) {
	e := event{time.Since(s.began), fmt.Sprintf(format, args...)}
	s.mu.Lock()
	s.events = append(s.events, e)
	s.mu.Unlock()
	s.screen.say(e)
}

// play is the story.
func (s *show) play(ctx context.Context, keep bool) error {
	c := s.cast
	s.say("three machines, an appliance and a TLS server on each; a client will ask %s", netip.AddrPortFrom(c.vip, port))
	if err := s.until(ctx, "a holder, and three appliances that are ready",
		func() bool { return c.holder() != nil && s.allReady() }); err != nil {
		return err
	}
	c.ask(ctx)
	if _, err := s.steady(ctx, time.Now()); err != nil {
		return err
	}
	first := c.holder()
	if first == nil {
		return errors.New("the holder went silent without a fault")
	}
	s.say("%s answers for %s; requests flow", first.id, c.vip)

	killed := time.Now()
	first.process.Load().Kill()
	s.say("SIGKILL for the appliance on %s", first.id)
	outage, err := s.steady(ctx, killed)
	if err != nil {
		return err
	}
	second := c.holder()
	if second == nil || second == first {
		return fmt.Errorf("%s was killed, requests flow, and nobody else answers for %s", first.id, c.vip)
	}
	s.say("%s took over: %s", second.id, outage)

	restarted := time.Now()
	if err := c.start(first); err != nil {
		return err
	}
	s.say("the appliance on %s is started again", first.id)
	if err := s.until(ctx, first.id+" is back in the group", s.allReady); err != nil {
		return err
	}
	back, err := s.steady(ctx, restarted)
	if err != nil {
		return err
	}
	s.say("%s is back: %s", first.id, back)

	claims := c.resolver.Replies()
	two := claims.Overlap()
	s.say("on the wire: %d answers for %s, two machines at once for %d ms", len(claims), c.vip, two.Milliseconds())
	if two > 0 {
		return fmt.Errorf("two machines answered for %s at the same time:\n%s", c.vip, claims.Around())
	}
	if keep {
		s.told = true
		return s.keepUp(ctx)
	}
	return nil
}

// steady waits until requests work for a second, and tells what the client
// saw since the fault.
func (s *show) steady(ctx context.Context, fault time.Time) (fmt.Stringer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.cast.probe.Load().WaitSteady(ctx, fault)
}

// until waits for cond.
func (s *show) until(ctx context.Context, what string, cond func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		for _, p := range s.cast.peers {
			if !p.alive() {
				return fmt.Errorf("the appliance on %s ended: %v", p.id, p.process.Load().Wait())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

func (s *show) allReady() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.views {
		if !v.ready || !v.alive {
			return false
		}
	}
	return len(s.views) > 0
}

// paint looks at everybody and draws, ten times a second.
func (s *show) paint(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		views := s.look(ctx)
		s.mu.Lock()
		s.views = views
		s.mu.Unlock()
		s.draw()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// draw shows what was seen last.
func (s *show) draw() {
	s.mu.Lock()
	p := picture{vip: netip.AddrPortFrom(s.cast.vip, port), peers: s.views, events: s.events}
	s.mu.Unlock()
	if probe := s.cast.probe.Load(); probe != nil {
		p.tries = probe.Tries()
	}
	s.screen.show(p)
}

// look asks every appliance how it is.
func (s *show) look(ctx context.Context) []peerView {
	holder := s.cast.holder()
	var views []peerView
	for _, p := range s.cast.peers {
		v := peerView{id: p.id, addr: p.addr, alive: p.alive(), holds: p == holder, requests: p.server.Requests()}
		asking, cancel := context.WithTimeout(ctx, time.Second)
		snapshot, err := p.status.Snapshot(asking)
		cancel()
		if err == nil {
			v.ready = len(snapshot.NotReady) == 0 && snapshot.Holder != ""
			for _, b := range snapshot.LoadBalancers {
				v.plane = string(b.Plane)
			}
		}
		views = append(views, v)
	}
	return views
}

// keepUp leaves everything running, and says how to look at it.
func (s *show) keepUp(ctx context.Context) error {
	c := s.cast
	var b strings.Builder
	fmt.Fprintf(&b, "\nEverything goes on until Ctrl-C, which removes it all. In another terminal, as root:\n")
	fmt.Fprintf(&b, "  a request:     nsenter --net=%s curl -k https://%s/\n", c.client.Namespace(),
		netip.AddrPortFrom(c.vip, port))
	for _, p := range c.peers {
		fmt.Fprintf(&b, "  enter %s:      nsenter --net=%s\n", p.id, p.node.Namespace())
		fmt.Fprintf(&b, "  its status:    %s status --socket %s\n", c.binary, p.socket)
		fmt.Fprintf(&b, "  its log:       tail -f %s\n", c.logFile(p))
		fmt.Fprintf(&b, "  kill it:       kill -9 %d\n", p.process.Load().Cmd.Process.Pid)
	}
	fmt.Fprintf(&b, "Who is killed is started again after 5 s.\n")
	s.screen.print(b.String())

	dead := map[*peer]time.Time{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, p := range c.peers {
			died, was := dead[p]
			switch {
			case p.alive():
			case !was:
				dead[p] = time.Now()
				s.say("the appliance on %s ended: %v", p.id, p.process.Load().Wait())
			case time.Since(died) > 5*time.Second:
				delete(dead, p)
				if err := c.start(p); err != nil {
					return err
				}
				s.say("the appliance on %s is started again: kill -9 %d", p.id, p.process.Load().Cmd.Process.Pid)
			}
		}
	}
}
