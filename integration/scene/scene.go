package scene

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"appliance/lab"
)

// Port is the port of the VIPs and of all servers.
const Port = 6443

// A Family says which addresses the machines have.
type Family string

// The families that a scene can be of.
const (
	IPv4 Family = "IPv4" // IPv6 is disabled on the nodes
	IPv6 Family = "IPv6" // no IPv4 address anywhere, not even on lo
	Dual Family = "dual" // a VIP of each
)

// A Setup says what a scene has.
type Setup struct {
	Family Family
	// Stacked servers run on the nodes themselves, as apiservers do, on
	// every address of the node. Otherwise they have machines of their own.
	Stacked bool
	// NoServers leaves the servers to the caller.
	NoServers bool
	// Further is how many more load balancers there are, with servers of their own, on the ports behind Port.
	Further int
	// Stack is what every machine's interface is made of. Nil is a card.
	Stack lab.Stack
	// Emulated machines are slow. Build measures their pace, and the scene sends
	// requests in proportion to it.
	Emulated bool
	// ClientPort is the port of the VIPs that clients connect to. Zero means
	// Port.
	ClientPort uint16
}

// A Scene is three nodes that can hold the VIPs, three servers, a client, and
// a watcher.
type Scene struct {
	Setup
	// Dir is for what the scene's programs keep; Close removes it.
	Dir string
	Lab *lab.Lab
	// VIPs are one of each family.
	VIPs []netip.Addr
	// Nodes are n1, n2, n3.
	Nodes []*lab.Machine
	// Servers are where the servers run: the nodes, or s1, s2, s3.
	Servers []*lab.Machine
	// Backends are the servers' addresses, of the families of the VIPs in
	// turn, per server.
	Backends [][]netip.AddrPort
	Client   *lab.Machine
	Watcher  *lab.Machine
	// Pace is how long one connection takes while an emulated machine does nothing
	// else. Zero means that the machine is not emulated.
	Pace time.Duration
	// Resolvers and Probes are one for each VIP, from Resolve and Ask on.
	Resolvers []*lab.Resolver
	Probes    []*lab.RunningProbe

	servers lab.Servers
	running []*lab.Server // by node, nil where none runs
}

// share is how many connections a slow machine could open between two requests of
// one client.
const share = 20

// InPace is the time between two requests: fast, or longer on a slow machine. It is
// at most a quarter of a second, so that every second has several.
func (s *Scene) InPace(fast time.Duration) time.Duration {
	return max(fast, min(share*s.Pace, 250*time.Millisecond))
}

// late is how long a peer or a backend may stay silent before it counts as lost. Zero
// means the program's default.
func (s *Scene) late() time.Duration {
	if s.Pace == 0 {
		return 0
	}
	return min(max(time.Second, 10*share*s.Pace), 10*time.Second).Round(time.Millisecond)
}

// Build makes the machines and starts the servers.
func Build(o Setup) (_ *Scene, err error) {
	s := &Scene{Setup: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.Dir, err = os.MkdirTemp("", "appliance-scene-"); err != nil {
		return nil, err
	}
	if s.Lab, err = lab.New(lab.Layout{Stack: o.Stack}); err != nil {
		return nil, err
	}
	for _, p := range s.addrs(10) {
		s.VIPs = append(s.VIPs, p.Addr())
	}
	for i := range 3 {
		n, err := s.Lab.Machine(fmt.Sprintf("n%d", i+1), s.addrs(11+i)...)
		if err != nil {
			return nil, err
		}
		s.Nodes = append(s.Nodes, n)
	}
	for i := range 3 {
		if err := s.addServer(i); err != nil {
			return nil, err
		}
	}
	if s.Client, err = s.Lab.Machine("client", s.addrs(50)...); err != nil {
		return nil, err
	}
	var many []netip.Prefix
	for _, p := range s.addrs(200) {
		many = append(many, lab.Range(p, 32)...)
	}
	if s.Watcher, err = s.Lab.Machine("watcher", many...); err != nil {
		return nil, err
	}
	if s.Emulated {
		s.Pace, err = s.Client.Pace(context.Background(), s.Backends[0][0])
	}
	return s, err
}

func (s *Scene) addServer(i int) (err error) {
	at := s.addrs(11 + i)
	n := s.Nodes[i]
	if !s.Stacked {
		at = s.addrs(21 + i)
		if n, err = s.Lab.Machine(fmt.Sprintf("s%d", i+1), at...); err != nil {
			return err
		}
	}
	var backends []netip.AddrPort
	for _, p := range at {
		backends = append(backends, netip.AddrPortFrom(p.Addr(), Port))
	}
	s.Servers = append(s.Servers, n)
	s.Backends = append(s.Backends, backends)
	s.running = append(s.running, nil)
	if s.NoServers {
		return nil
	}
	for k := range s.Further {
		_, err := s.servers.Serve(n, fmt.Sprintf("server%d", i+1), netip.AddrPortFrom(s.anywhere(), Port+1+uint16(k)), nil)
		if err != nil {
			return err
		}
	}
	return s.StartServer(i)
}

// anywhere is where servers listen: an apiserver does on every address that its node has.
func (s *Scene) anywhere() netip.Addr {
	if s.Family == IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// StartServer starts server i at Port, for the first time or again.
func (s *Scene) StartServer(i int) (err error) {
	s.running[i], err = s.servers.Serve(s.Servers[i], fmt.Sprintf("server%d", i+1), netip.AddrPortFrom(s.anywhere(), Port),
		nil)
	return err
}

// StopServer ends server i; its connections go on.
func (s *Scene) StopServer(i int) { s.running[i].Close() }

// addrs are the n-th addresses of the scene's subnets.
func (s *Scene) addrs(n int) []netip.Prefix {
	var out []netip.Prefix
	if s.Family != IPv6 {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", n)))
	}
	if s.Family != IPv4 {
		out = append(out, netip.MustParsePrefix(fmt.Sprintf("fd77::%d/64", n)))
	}
	return out
}

// Addr is the address by which the other nodes know node i.
func (s *Scene) Addr(i int) netip.Addr { return s.addrs(11 + i)[0].Addr() }

// Target is where clients connect to for a VIP.
func (s *Scene) Target(vip netip.Addr) netip.AddrPort {
	if s.ClientPort != 0 {
		return netip.AddrPortFrom(vip, s.ClientPort)
	}
	return netip.AddrPortFrom(vip, Port)
}

// Resolve starts to ask the link who answers for each VIP.
func (s *Scene) Resolve(ctx context.Context) error {
	for _, vip := range s.VIPs {
		w, err := s.Watcher.Resolve(ctx, lab.Resolve{VIP: vip, Every: s.InPace(0)})
		if err != nil {
			return err
		}
		s.Resolvers = append(s.Resolvers, w)
	}
	return nil
}

// Ask starts a client for each VIP.
func (s *Scene) Ask(ctx context.Context) {
	for _, vip := range s.VIPs {
		p := lab.Probe{Target: s.Target(vip), Every: s.InPace(0)}
		if s.Emulated {
			p.Patience = max(5*time.Second, 50*share*s.Pace)
		}
		s.Probes = append(s.Probes, s.Client.Probe(ctx, p))
	}
}

// Rest ends what Resolve and Ask have started, so that both can begin anew.
func (s *Scene) Rest() error {
	var errs []error
	for _, p := range s.Probes {
		p.Stop()
	}
	for _, w := range s.Resolvers {
		errs = append(errs, w.Stop())
	}
	s.Probes, s.Resolvers = nil, nil
	return errors.Join(errs...)
}

// fresh is how old the last reply of a holder may be.
func (s *Scene) fresh() time.Duration { return 5 * s.InPace(50*time.Millisecond) }

// Holder is the index of the node that answers for all VIPs now, or -1.
func (s *Scene) Holder() int {
	holder := -1
	for k, w := range s.Resolvers {
		c, ok := w.Last()
		if !ok || time.Since(c.At) > s.fresh() {
			return -1
		}
		i := s.Index(c.MAC)
		if i < 0 || k > 0 && i != holder {
			return -1
		}
		holder = i
	}
	return holder
}

// Index is the index of the node with this hardware address, or -1.
func (s *Scene) Index(mac string) int {
	return slices.IndexFunc(s.Nodes, func(n *lab.Machine) bool { return n.MAC().String() == mac })
}

// AwaitHolder waits until a node that ok accepts answers for all VIPs.
func (s *Scene) AwaitHolder(ctx context.Context, ok func(i int) bool) (int, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if i := s.Holder(); i >= 0 && ok(i) {
			return i, nil
		}
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("nobody who should answers for %v; last heard: %s", s.VIPs, s.last())
		case <-tick.C:
		}
	}
}

func (s *Scene) last() string {
	var b strings.Builder
	for i, w := range s.Resolvers {
		c, ok := w.Last()
		if !ok {
			fmt.Fprintf(&b, "nothing for %s; ", s.VIPs[i])
			continue
		}
		fmt.Fprintf(&b, "node %d for %s %s ago; ", s.Index(c.MAC)+1, s.VIPs[i], time.Since(c.At).Round(time.Millisecond))
	}
	return b.String()
}

// Steady waits until requests to every VIP have worked for a second since the
// fault, and returns the longest outage.
func (s *Scene) Steady(ctx context.Context, fault time.Time) (worst lab.Outage, err error) {
	for i, p := range s.Probes {
		o, err := p.WaitSteady(ctx, fault)
		if err != nil {
			return o, fmt.Errorf("%s: %w", s.VIPs[i], err)
		}
		if i == 0 || o.Steady > worst.Steady {
			worst = o
		}
	}
	return worst, nil
}

// Overlap is how long two nodes answered for a VIP at the same time since t,
// and the frames that say so.
func (s *Scene) Overlap(t time.Time) (total time.Duration, frames string) {
	for _, w := range s.Resolvers {
		cs := w.Replies().Since(t)
		total += cs.Overlap()
		frames += cs.Around()
	}
	return total, frames
}

// Strangers are hardware addresses other than the nodes' that answered for a VIP.
func (s *Scene) Strangers() []string {
	var out []string
	for _, w := range s.Resolvers {
		for _, mac := range w.Replies().MACs() {
			if s.Index(mac) < 0 {
				out = append(out, mac)
			}
		}
	}
	return out
}

// Close stops everything and removes every trace.
func (s *Scene) Close() error {
	errs := []error{s.Rest()}
	s.servers.Close()
	if s.Lab != nil {
		errs = append(errs, s.Lab.Close())
	}
	if s.Dir != "" {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(errs...)
}
