package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Probe says how a RunningProbe tries a service again and again.
type Probe struct {
	// Target is the address that is tried.
	Target netip.AddrPort
	// Every is the time between the starts of two tries, whether or not
	// the earlier ones have ended. Zero means 5 ms.
	Every time.Duration
	// Patience bounds one try from its start to its answer. Zero means
	// 200 ms, less than the second after which TCP would send a lost SYN
	// again: a try tells about its own moment.
	Patience time.Duration
	// TLS, if set, makes each try a whole TLS handshake before its request.
	TLS *tls.Config
	// Bare tries end when the connection is open, without a request.
	Bare bool
}

// A Try is one attempt of a RunningProbe.
type Try struct {
	Start, End time.Time
	// Server is the name that answered.
	Server string
	// Err is nil when the whole try worked.
	Err error
}

// A RunningProbe is a client of a service of Servers that never gives up.
type RunningProbe struct {
	cancel context.CancelFunc
	enough chan struct{} // closed when no more tries are to begin
	once   sync.Once
	wg     sync.WaitGroup

	mu    sync.Mutex
	tries []Try
}

// Probe starts to try p.Target from the machine until Stop or the end of ctx.
func (n *Machine) Probe(ctx context.Context, p Probe) *RunningProbe {
	if p.Every == 0 {
		p.Every = 5 * time.Millisecond
	}
	if p.Patience == 0 {
		p.Patience = 200 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &RunningProbe{cancel: cancel, enough: make(chan struct{})}
	r.wg.Go(func() {
		tick := time.NewTicker(p.Every)
		defer tick.Stop()
		for {
			r.wg.Go(func() {
				t := Try{Start: time.Now()}
				t.Server, t.Err = n.try(ctx, p)
				t.End = time.Now()
				if ctx.Err() != nil {
					return // cut off by Stop; it says nothing
				}
				r.mu.Lock()
				r.tries = append(r.tries, t)
				r.mu.Unlock()
			})
			select {
			case <-ctx.Done():
				return
			case <-r.enough:
				return
			case <-tick.C:
			}
		}
	})
	return r
}

// Pace is how long a connection to a service of Servers takes with its answer,
// averaged over twenty, one after the other. Tests send a slow machine requests in
// proportion to it.
func (n *Machine) Pace(ctx context.Context, target netip.AddrPort) (time.Duration, error) {
	const times = 20
	began := time.Now()
	for range times {
		if _, err := n.try(ctx, Probe{Target: target, Patience: time.Minute}); err != nil {
			return 0, fmt.Errorf("lab: measure the pace of connections to %s: %w", target, err)
		}
	}
	return time.Since(began) / times, nil
}

func (n *Machine) try(ctx context.Context, p Probe) (server string, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.Patience)
	defer cancel()
	c, err := n.Dial(ctx, p.Target)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if p.Bare {
		return "", nil
	}
	// An I/O error after the deadline names no cause; the deadline does.
	wire := c
	stop := context.AfterFunc(ctx, func() { wire.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if p.TLS != nil {
		tc := tls.Client(c, p.TLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			return "", fmt.Errorf("TLS handshake: %w", err)
		}
		c = tc
	}
	a, err := Ask(c, "who")
	return a.Server, err
}

// An Answer is what a server of Servers says to each line.
type Answer struct {
	// Server is its name.
	Server string
	// Client is the client's address as the server sees it.
	Client netip.AddrPort
}

// Ask sends one line to a server of Servers and reads its answer.
func Ask(c net.Conn, line string) (Answer, error) {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return Answer{}, err
	}
	// Nothing follows an answer before the next line is sent, so a reader
	// that reads ahead takes nothing away.
	text, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return Answer{}, fmt.Errorf("read the answer: %w", err)
	}
	var a Answer
	var client string
	if _, err := fmt.Sscanf(text, "%s %s\n", &a.Server, &client); err != nil {
		return Answer{}, fmt.Errorf("answer %q is no name and address: %w", text, err)
	}
	a.Client, err = netip.ParseAddrPort(client)
	return a, err
}

// Tries are all ended tries in the order of their starts.
func (r *RunningProbe) Tries() []Try {
	r.mu.Lock()
	tries := slices.Clone(r.tries)
	r.mu.Unlock()
	slices.SortFunc(tries, func(a, b Try) int { return a.Start.Compare(b.Start) })
	return tries
}

// Finish begins no more tries and waits for what becomes of the open ones, for
// as long as they have patience.
func (r *RunningProbe) Finish() {
	r.once.Do(func() { close(r.enough) })
	r.wg.Wait()
	r.cancel()
}

// Stop ends the probe and cuts its open tries off.
func (r *RunningProbe) Stop() {
	r.cancel()
	r.wg.Wait()
}

// Outage is the outage since fault as seen so far.
func (r *RunningProbe) Outage(fault time.Time) Outage { return OutageSince(r.Tries(), fault) }

// WaitSteady waits until tries have worked for a whole second after fault,
// and returns the outage. At the end of ctx it returns the outage so far and
// an error.
func (r *RunningProbe) WaitSteady(ctx context.Context, fault time.Time) (Outage, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		o := r.Outage(fault)
		if o.Recovered {
			return o, nil
		}
		select {
		case <-ctx.Done():
			return o, fmt.Errorf("lab: no second without a failed request since the fault (%s); the last error: %v",
				o, o.LastErr)
		case <-tick.C:
		}
	}
}
