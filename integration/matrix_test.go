package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
	"appliance/status"
)

// A hall is one room of the matrix: a group whose servers and firewalls are alike on all nodes, from the start or once
// it serves, with a client in every position.
type hall struct {
	plane    balancer.PlaneName
	family   scene.Family
	bound    string // where the servers listen
	firewall string // of each node
	when     string // servers and firewalls became so
}

func (h hall) String() string {
	return fmt.Sprintf("%s, %s, servers bound to %s, firewall %s, %s", h.plane, h.family, h.bound, h.firewall, h.when)
}

const (
	toAll, toNode, toVIP, toLoopback = "all", "the node's address", "the VIP", "loopback"
	noFirewall                       = "none"
	inputDrop                        = "input drop"   // of what goes to the VIP
	forwardDrop                      = "forward drop" // of all
	bothDrop                         = "both"
	stateful                         = "stateful" // as `appliance endpoints` says, and nothing invalid

	before, meanwhile = "from the start", "later"
)

// halls are all combinations.
func halls() (all []hall) {
	for _, plane := range append(planes(), balancer.Auto) {
		for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
			for _, bound := range []string{toAll, toNode, toVIP, toLoopback} {
				for _, firewall := range []string{noFirewall, inputDrop, forwardDrop, bothDrop, stateful} {
					for _, when := range []string{before, meanwhile} {
						if when == before || bound != toAll || firewall != noFirewall {
							all = append(all, hall{plane, family, bound, firewall, when})
						}
					}
				}
			}
		}
	}
	return all
}

// some are a few halls in which each value of each dimension occurs.
func some(all []hall, seed uint64) (few []hall) {
	all = slices.Clone(all)
	random := rand.New(rand.NewPCG(seed, 0))
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	missing := make(map[any]bool)
	values := func(h hall) []any { return []any{h.plane, h.family, h.bound, h.firewall, h.when} }
	for _, h := range all {
		for _, v := range values(h) {
			missing[v] = true
		}
	}
	for len(missing) > 0 {
		best, most := all[0], -1
		for _, h := range all {
			n := 0
			for _, v := range values(h) {
				if missing[v] {
					n++
				}
			}
			if n > most {
				best, most = h, n
			}
		}
		for _, v := range values(best) {
			delete(missing, v)
		}
		few = append(few, best)
	}
	return few
}

// matrixEnv chooses what TestMatrix does: "all" is every hall, a number is the seed of a sample, and a part of a hall's
// name is the halls with it.
const matrixEnv = "APPLIANCE_TEST_MATRIX"

// TestMatrix tries every data plane in both families, with servers bound to different addresses, behind different
// firewalls, from every position. Each client is either served, or it is shown, with the reason, that it is not.
func TestMatrix(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	chosen, seed := halls(), rand.Uint64N(1e6)
	switch only := os.Getenv(matrixEnv); {
	case only == "all":
	case only != "" && strings.Trim(only, "0123456789") != "":
		chosen = slices.DeleteFunc(chosen, func(h hall) bool { return !strings.Contains(h.String(), only) })
	default:
		if only != "" {
			seed, _ = strconv.ParseUint(only, 10, 64)
		}
		t.Logf("to try the same again: %s=%d", matrixEnv, seed)
		chosen = some(chosen, seed)
	}
	for _, h := range chosen {
		t.Run(h.String(), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			h.try(t)
		})
	}
}

// try builds the hall and judges each client.
func (h hall) try(t *testing.T) {
	w := newWorld(t, h.family)
	peers := balance{name: "peers", port: scene.Port, backend: scene.Port, scheduler: "rr",
		nodes: []string{"n1", "n2", "n3"}}
	group, _ := w.keys(t)
	w.write(t, func(int) string { return w.config(string(h.plane), group, []balance{peers}) })
	w.apps = w.apps[:worker]
	pod := w.pod(t, w.nodes[0])
	if h.when == meanwhile { // everybody was served
		for _, p := range w.apps {
			p.start(t)
		}
		w.proved(t, "peers", func(p *balancer.ProofStatus) bool {
			return p.State == balancer.Proved && p.Local.State == balancer.Proved
		})
	}
	began := time.Now()
	if h.when == meanwhile {
		defer w.watchSigns(t, began)()
	}
	for i, name := range peers.nodes {
		h.bind(t, w, name)
		h.protect(t, w, i)
	}
	if h.when == before {
		began = time.Now()
		for _, p := range w.apps {
			p.start(t)
		}
	}
	for _, c := range []struct {
		name  string
		local bool
		// at is the node that serves it, and from is the client; the holder moves.
		at   func(holder int) int
		from func(holder int) *lab.Machine
	}{
		{"on the link", false, func(h int) int { return h }, func(int) *lab.Machine { return w.client }},
		{"behind a router", false, func(h int) int { return h }, func(int) *lab.Machine { return w.far }},
		{"on another node", true, func(h int) int { return others(h)[0] },
			func(h int) *lab.Machine { return w.nodes[others(h)[0]] }},
		{"on the holder", true, func(h int) int { return h }, func(h int) *lab.Machine { return w.nodes[h] }},
		{"in a pod", false, func(int) int { return 0 }, func(int) *lab.Machine { return pod }},
	} {
		var verdict string
		eventually(t, func() (err error) {
			holder := w.whoHolds(t)
			verdict, err = h.judge(t, w, c.at(holder), c.from(holder), c.local)
			return err
		})
		t.Logf("%s, %.1f s later: %s", c.name, time.Since(began).Seconds(), verdict)
	}
}

// watchSigns notes when each peer first shows that something is amiss, until the returned function logs it: each
// judgement of a client that is not served takes seconds.
func (w *world) watchSigns(t *testing.T, began time.Time) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	signs := make([]string, worker)
	for i, p := range w.apps[:worker] {
		watching.Go(func() {
			for first := balancer.PlaneName(""); ctx.Err() == nil && signs[i] == ""; time.Sleep(100 * time.Millisecond) {
				s, err := p.client.Snapshot(ctx)
				if err != nil || len(s.LoadBalancers) == 0 {
					continue
				}
				plane := s.LoadBalancers[0].Plane
				first = cmp.Or(first, plane)
				why, _, err := w.shown(t, i, false)
				if why == "" && plane != first {
					why = fmt.Sprintf("%s serves instead of %s", plane, first)
				}
				if err == nil && why != "" {
					signs[i] = fmt.Sprintf("shows %.1f s later: %s", time.Since(began).Seconds(), why)
				}
			}
		})
	}
	return func() {
		cancel()
		watching.Wait()
		for i, sign := range signs {
			t.Logf("%s %s", w.nodes[i].Name, cmp.Or(sign, "shows nothing amiss"))
		}
	}
}

// bind has a node's server listen where the hall says.
func (h hall) bind(t *testing.T, w *world, name string) {
	t.Helper()
	at := w.anywhere()
	switch h.bound {
	case toAll:
		return
	case toNode:
		at = w.addr(name)
	case toVIP:
		at = w.vip()
		for _, family := range []string{"ipv4", "ipv6"} {
			err := w.machine(name).Do(func() error {
				return os.WriteFile("/proc/sys/net/"+family+"/ip_nonlocal_bind", []byte("1"), 0)
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	case toLoopback:
		if at = netip.IPv6Loopback(); h.family == scene.IPv4 {
			at = netip.MustParseAddr("127.0.0.1")
		}
	}
	w.rebind(t, name, at)
}

// protect gives a node the hall's firewall.
func (h hall) protect(t *testing.T, w *world, i int) {
	t.Helper()
	drop := func(chain string, rules ...string) string {
		return fmt.Sprintf("add chain inet fence %s { type filter hook %s priority 0; policy drop; }; "+
			"add rule inet fence %s ct state established,related accept; ", chain, chain, chain) + strings.Join(rules, "; ")
	}
	own := map[bool]string{true: "ip", false: "ip6"}[h.family == scene.IPv4] + " daddr " + w.addr(w.nodes[i].Name).String()
	input := drop("input", "add rule inet fence input iif lo accept",
		"add rule inet fence input meta l4proto { icmp, ipv6-icmp } accept", "add rule inet fence input "+own+" accept")
	switch h.firewall {
	case inputDrop:
		w.shell(t, i, "nft", "add table inet fence; "+input)
	case forwardDrop:
		w.shell(t, i, "nft", "add table inet fence; "+drop("forward"))
	case bothDrop:
		w.shell(t, i, "nft", "add table inet fence; "+input+"; "+drop("forward"))
	case stateful:
		w.fence(t, w.nodes[i], w.openings(t, w.apps[i]))
		for _, chain := range []string{"input", "forward"} {
			w.shell(t, i, "nft", "insert rule inet fence "+chain+" ct state invalid drop")
		}
	}
}

// mustServe says whether nothing is in the way: showing that a client is not served would be wrong.
func (h hall) mustServe() bool {
	switch {
	case h.bound == toVIP, h.bound == toLoopback: // the checks ask the node's address
		return false
	case h.bound == toNode && h.plane == balancer.Direct:
		return false
	case h.firewall == inputDrop:
		return h.plane == balancer.Auto || h.plane == balancer.NFTables
	case h.firewall == forwardDrop:
		return h.plane != balancer.NFTables
	}
	return h.firewall != bothDrop
}

// causes are words of which the reason has to have one.
func (h hall) causes() (words []string) {
	if h.bound != toAll {
		words = append(words, "listens on", "refused")
	}
	if h.firewall == inputDrop || h.firewall == bothDrop {
		words = append(words, "input chain")
	}
	if h.firewall == forwardDrop || h.firewall == bothDrop {
		words = append(words, "forward chain")
	}
	return words
}

// judge compares what a client gets with what the node that serves it says.
func (h hall) judge(t *testing.T, w *world, node int, from *lab.Machine, local bool) (string, error) {
	served := w.servedNow(t, from)
	why, settled, err := w.shown(t, node, local)
	switch {
	case err != nil:
		return "", err
	case served == nil && why != "":
		return "", fmt.Errorf("%s is served, and %s says %s", from.Name, w.nodes[node].Name, why)
	case served == nil:
		return "served", nil
	case !settled:
		return "", fmt.Errorf("%s is not served (%w), and nothing is known yet", from.Name, served)
	case why == "":
		return "", fmt.Errorf("%s is not served (%w), and %s says nothing", from.Name, served, w.nodes[node].Name)
	case h.mustServe():
		return "", fmt.Errorf("%s is not served (%w), although it could be: %s", from.Name, served, why)
	}
	causes := h.causes()
	if !slices.ContainsFunc(causes, func(cause string) bool { return strings.Contains(why, cause) }) {
		return "", fmt.Errorf("%s is not served (%w), and the reason is none of %q: %s", from.Name, served, causes, why)
	}
	return "not served, and shown: " + why, nil
}

// servedNow connects some times at once, so that each backend is met, and returns the error of one that failed. A
// client whose SYN had to be sent again, a second later, is not served well: it may have gone to another backend then.
func (w *world) servedNow(t *testing.T, from *lab.Machine) error {
	const tries = 12
	ctx, cancel := context.WithTimeout(t.Context(), patience/10)
	defer cancel()
	results := make(chan error, tries)
	for range tries {
		go func() {
			results <- func() error {
				c, err := from.Dial(ctx, w.target(scene.Port))
				if err != nil {
					return err
				}
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				if n, err := sentAgain(c); err != nil || n > 0 {
					return cmp.Or(err, fmt.Errorf("the SYN was sent %d times more", n))
				}
				_, err = lab.Ask(c, "who")
				return err
			}()
		}()
	}
	var failed error
	for range tries {
		if err := <-results; err != nil {
			failed = err
		}
	}
	return failed
}

// sentAgain counts the segments of a connection that its kernel has sent again: tcp(7).
func sentAgain(c net.Conn) (n uint32, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	err = errors.Join(raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Total_retrans
		}
	}), err)
	return n, err
}

// shown is why a node says that clients are not served, or "". It is settled once it was tried.
func (w *world) shown(t *testing.T, i int, local bool) (why string, settled bool, err error) {
	p := w.apps[i]
	select {
	case <-p.proc.Done():
		lines := strings.Split(strings.TrimSpace(p.log()), "\n")
		return "it has ended: " + lines[len(lines)-1], true, nil
	default:
	}
	s, err := p.client.Snapshot(t.Context())
	if err != nil {
		return "", false, err
	}
	at := slices.IndexFunc(s.LoadBalancers, func(lb balancer.LoadBalancerStatus) bool { return lb.Name == "peers" })
	if at < 0 {
		return "", false, errors.New("there is no load balancer yet")
	}
	lb := s.LoadBalancers[at]
	isUp := func(b balancer.BackendStatus) bool { return b.State == balancer.Up }
	proof := lb.Proof
	if local && proof != nil {
		proof = proof.Local
	}
	switch {
	case lb.Moving != "":
		return "", false, fmt.Errorf("%s moves to %s", lb.Name, lb.Moving)
	case lb.Error != "":
		return lb.Error, true, nil
	case !slices.ContainsFunc(lb.Backends, isUp):
		var texts []string
		for _, b := range lb.Backends {
			if b.State == balancer.Down {
				texts = append(texts, b.Reason)
			}
		}
		return strings.Join(texts, "; "), len(texts) > 0, nil
	case proof == nil:
		return "", false, nil
	case proof.State == balancer.Unproved:
		return proof.Reason, true, nil
	}
	return "", proof.State == balancer.Proved, nil
}

// whoHolds is the peer that says that it holds, ready or not; the first while nobody does.
func (w *world) whoHolds(t *testing.T) int {
	return max(0, slices.IndexFunc(w.apps, func(p *program) bool {
		var s status.Snapshot
		s, err := p.client.Snapshot(t.Context())
		return err == nil && s.Group.Holding
	}))
}

// pod makes a machine whose only way out is a node, by a link that this routes.
func (w *world) pod(t *testing.T, node *lab.Machine) *lab.Machine {
	t.Helper()
	pod, err := w.lab.Machine("pod", w.prefix(60))
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.LinkDown(); err != nil {
		t.Fatal(err)
	}
	inside, err := os.Open(pod.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	gateway, own := netip.MustParsePrefix("10.79.0.1/24"), netip.MustParsePrefix("10.79.0.2/24")
	if w.family == scene.IPv6 {
		gateway, own = netip.MustParsePrefix("fd79::1/64"), netip.MustParsePrefix("fd79::2/64")
	}
	err = errors.Join(
		node.Do(func() error {
			pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod"}, PeerName: "net0",
				PeerNamespace: netlink.NsFd(int(inside.Fd()))}
			return errors.Join(netlink.LinkAdd(pair), setUp("pod", gateway))
		}),
		pod.Do(func() error {
			vip := &net.IPNet{IP: w.vip().AsSlice(), Mask: net.CIDRMask(w.vip().BitLen(), w.vip().BitLen())}
			return errors.Join(setUp("net0", own), netlink.RouteAdd(&netlink.Route{Dst: vip, Gw: gateway.Addr().AsSlice()}))
		}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// setUp gives an interface of this namespace an address.
func setUp(name string, at netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	const nodad = 0x02 // IFA_F_NODAD in linux/if_addr.h
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: at.Addr().AsSlice(), Mask: net.CIDRMask(at.Bits(), at.Addr().BitLen())}}
	if at.Addr().Is6() {
		addr.Flags = nodad
	}
	return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
}
