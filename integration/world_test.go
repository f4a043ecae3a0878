package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
	"appliance/status"
	"appliance/status/client"
)

// A world is the network for tests of data planes, of one family:
//
//	n1 n2 n3   peers, each with a server on *:6443 and *:6444
//	w1         a worker, with a server of its own there, too
//	s1 s2      servers without the appliance
//	client     on the same link
//	router     to another link, on which far is
//
// Every server answers with the name of its machine.
type world struct {
	family scene.Family
	dir    string
	lab    *lab.Lab
	nodes  []*lab.Machine // n1, n2, n3, w1
	s1, s2 *lab.Machine
	client *lab.Machine
	far    *lab.Machine
	// watcher has many addresses to ask from.
	watcher  *lab.Machine
	resolver *lab.Resolver
	servers  lab.Servers
	byName   map[string]*lab.Server
	apps     []*program
	stray    int // how many strays were sent
}

// worker is the index of the worker among nodes and programs.
const worker = 3

// serviceUser is who the programs of a world run as: like the systemd service, they are not root's.
const serviceUser = 4242

// serviceDir is where the service's user makes data and sockets.
func serviceDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, serviceUser, 0), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// asService is how the systemd unit starts the program.
func asService() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: serviceUser, Gid: serviceUser},
		// Those of the unit, and one in the place of its Nice=.
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_NICE},
	}
}

// twin is the second port of all servers.
const twin = scene.Port + 1

// A balance is a load balancer of a world.
type balance struct {
	name      string
	port      uint16
	backend   uint16 // port of the backends
	scheduler string
	// nodes are the machines with the backends, weights are theirs; none
	// means 1.
	nodes   []string
	weights []int
	// check is the check of the backends; empty is that they accept.
	check string
	// more are further lines of configuration.
	more string
}

// newWorld builds the machines and starts their servers.
func newWorld(t *testing.T, family scene.Family) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	inputs(t)
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{family: family, dir: serviceDir(t), lab: l, byName: map[string]*lab.Server{}}
	t.Cleanup(w.close(t))
	gateway := w.prefix(1)
	router, err := l.Router("router", []netip.Prefix{gateway}, []netip.Prefix{away(gateway)})
	if err != nil {
		t.Fatal(err)
	}
	machine := func(name string, n int) *lab.Machine {
		m, err := l.Machine(name, w.prefix(n))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Route(away(gateway).Masked(), gateway.Addr()); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for i, name := range []string{"n1", "n2", "n3", "w1"} {
		w.nodes = append(w.nodes, machine(name, 11+i))
		w.serve(t, w.nodes[i], scene.Port)
		w.serve(t, w.nodes[i], twin)
	}
	w.s1, w.s2, w.client = machine("s1", 21), machine("s2", 22), machine("client", 50)
	w.serve(t, w.s1, scene.Port)
	w.serve(t, w.s2, scene.Port)
	if w.far, err = l.FarMachine("far", router, away(w.prefix(50))); err != nil {
		t.Fatal(err)
	}
	if w.watcher, err = l.Machine("watcher", lab.Range(w.prefix(200), 32)...); err != nil {
		t.Fatal(err)
	}
	return w
}

// away is the same place on the other link.
func away(p netip.Prefix) netip.Prefix {
	text := strings.Replace(strings.Replace(p.String(), "10.77.", "10.78.", 1), "fd77:", "fd78:", 1)
	return netip.MustParsePrefix(text)
}

// prefix is the n-th address of the near link.
func (w *world) prefix(n int) netip.Prefix {
	if w.family == scene.IPv4 {
		return netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", n))
	}
	return netip.MustParsePrefix(fmt.Sprintf("fd77::%d/64", n))
}

// vip is the virtual address.
func (w *world) vip() netip.Addr { return w.prefix(10).Addr() }

// target is where clients of a load balancer connect to.
func (w *world) target(port uint16) netip.AddrPort { return netip.AddrPortFrom(w.vip(), port) }

// serve starts a server of the machine's name on all its addresses, as an
// apiserver listens.
func (w *world) serve(t *testing.T, n *lab.Machine, port uint16) {
	t.Helper()
	any := netip.IPv6Unspecified()
	if w.family == scene.IPv4 {
		any = netip.IPv4Unspecified()
	}
	s, err := w.servers.Serve(n, n.Name, netip.AddrPortFrom(any, port), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.byName[fmt.Sprintf("%s:%d", n.Name, port)] = s
}

func (w *world) close(t *testing.T) func() {
	return func() {
		if w.resolver != nil {
			if err := w.resolver.Stop(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("the appliances said:\n%s", w.logs())
		}
		w.servers.Close()
		if err := w.lab.Close(); err != nil {
			t.Error(err)
		}
	}
}

// machine finds a machine with a server by its name.
func (w *world) machine(name string) *lab.Machine {
	all := append([]*lab.Machine{w.s1, w.s2}, w.nodes...)
	return all[slices.IndexFunc(all, func(n *lab.Machine) bool { return n.Name == name })]
}

// addr is its address.
func (w *world) addr(name string) netip.Addr {
	return w.machine(name).Addr(w.family == scene.IPv4)
}

// config is a configuration file, whole but for what flags say.
func (w *world) config(plane, keyFile string, balances []balance) string {
	var b strings.Builder
	fmt.Fprintf(&b, "vips: [%q]\npeers:\n", w.vip())
	for _, n := range w.nodes[:worker] {
		fmt.Fprintf(&b, "- id: %s\n  address: %q\n", n.Name, w.addr(n.Name))
	}
	fmt.Fprintf(&b, "group:\n  keyFile: %s\n", keyFile)
	// Many machines share this one, and a slow peer is not a dead one.
	heartbeat, inter := "500ms", "1s"
	if os.Getenv(inVM) != "" {
		heartbeat, inter = "10s", "10s"
	}
	fmt.Fprintf(&b, "  heartbeat: %s\n", heartbeat)
	if plane != "" {
		fmt.Fprintf(&b, "dataPlane: %s\n", plane)
	}
	b.WriteString("loadBalancers:\n")
	for _, lb := range balances {
		fmt.Fprintf(&b, "- name: %s\n  port: %d\n  scheduler: %s\n  check: {%s, inter: %s}\n  backends:\n",
			lb.name, lb.port, lb.scheduler, cmp.Or(lb.check, "type: tcp"), inter)
		for i, name := range lb.nodes {
			weight := 1
			if i < len(lb.weights) {
				weight = lb.weights[i]
			}
			fmt.Fprintf(&b, "  - {address: %q, port: %d, weight: %d}\n", w.addr(name), lb.backend, weight)
		}
		b.WriteString(lb.more)
	}
	return b.String()
}

// A program is the appliance on one machine of a world.
type program struct {
	node   *lab.Machine
	path   string // of all its files, without their endings
	args   []string
	asRoot bool // its files are root's
	proc   *lab.Process
	client *client.Client
}

// start starts the appliance on the three peers, and on the worker if role
// worker is asked for, and waits until all are ready.
func (w *world) start(t *testing.T, plane string, balances []balance) {
	t.Helper()
	group, own := w.keys(t)
	w.begin(t, func(i int) string {
		if i == worker {
			return w.config(w.ofWorker(plane), own, balances)
		}
		return w.config(plane, group, balances)
	})
}

// begin starts the appliance on the three peers and the worker, each with a
// configuration of its own, and waits until all are ready.
func (w *world) begin(t *testing.T, config func(i int) string) {
	t.Helper()
	w.launch(t, config)
	for i := range w.apps {
		w.ready(t, i)
	}
}

// launch is begin without waiting.
func (w *world) launch(t *testing.T, config func(i int) string) {
	t.Helper()
	w.write(t, config)
	for _, p := range w.apps {
		p.start(t)
	}
}

// write makes the programs with their configurations, and starts none.
func (w *world) write(t *testing.T, config func(i int) string) {
	t.Helper()
	for i, n := range w.nodes {
		p := &program{node: n, path: filepath.Join(w.dir, n.Name)}
		p.client = client.New(p.path + ".sock")
		if i == worker {
			p.args = []string{"--role", "worker"}
		}
		if err := os.WriteFile(p.path+".yaml", []byte(config(i)), 0o644); err != nil {
			t.Fatal(err)
		}
		w.apps = append(w.apps, p)
	}
}

// ofWorker is the plane in a worker's configuration: no holder hands packets to a worker.
func (w *world) ofWorker(plane string) string {
	if plane == string(balancer.Direct) {
		return string(balancer.Auto)
	}
	return plane
}

// keys makes the group's key and the one of workers, and returns their files.
func (w *world) keys(t *testing.T) (group, own string) {
	t.Helper()
	group, own = filepath.Join(w.dir, "group.key"), filepath.Join(w.dir, "worker.key")
	for _, k := range []struct {
		file string
		args []string
	}{
		{group, []string{"keygen"}},
		{own, []string{"keygen", "--worker", "--group-key", group}},
	} {
		key, err := exec.Command(binary, k.args...).Output()
		if err != nil {
			t.Fatalf("%v: %v", k.args, err)
		}
		if err := os.WriteFile(k.file, key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{group, own} {
		if err := os.Chown(file, serviceUser, 0); err != nil {
			t.Fatal(err)
		}
	}
	return group, own
}

func (p *program) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(p.path+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"start", "--config", p.path + ".yaml", "--data-dir", p.path, "--socket", p.path + ".sock"},
		p.args...)
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if !p.asRoot {
		cmd.SysProcAttr = asService()
	}
	if p.proc, err = p.node.Start(cmd); err != nil {
		t.Fatal(err)
	}
}

// stop asks the program to end, and waits for it.
func (p *program) stop(t *testing.T) {
	t.Helper()
	if err := p.proc.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.proc.Wait(); err != nil {
		t.Errorf("the appliance on %s did not end well: %v", p.node.Name, err)
	}
}

// freeze stops the program without its knowing; thaw undoes it.
func (p *program) freeze() error { return p.proc.Signal(syscall.SIGSTOP) }
func (p *program) thaw() error   { return p.proc.Signal(syscall.SIGCONT) }

func (p *program) log() string {
	text, _ := os.ReadFile(p.path + ".log")
	return string(text)
}

func (w *world) logs() string {
	var b strings.Builder
	for _, p := range w.apps {
		for line := range strings.Lines(p.log()) {
			fmt.Fprintf(&b, "%s: %s", p.node.Name, line)
		}
	}
	return b.String()
}

// status is what a program says of itself, and why not.
func (p *program) status(ctx context.Context) (status.Snapshot, error) {
	s, err := p.client.Snapshot(ctx)
	if err == nil && len(s.NotReady) > 0 {
		err = fmt.Errorf("%s is not ready: %s", s.ID, strings.Join(s.NotReadyTexts(), "; "))
	}
	return s, err
}

// ready waits until the appliance on a node would serve.
func (w *world) ready(t *testing.T, i int) status.Snapshot {
	t.Helper()
	var s status.Snapshot
	eventually(t, func() (err error) {
		select {
		case <-w.apps[i].proc.Done():
			t.Fatalf("the appliance on %s has ended: %v", w.apps[i].node.Name, w.apps[i].proc.Wait())
		default:
		}
		s, err = w.apps[i].status(t.Context())
		if err == nil && i != worker && s.Holder == "" {
			err = fmt.Errorf("%s knows of no holder", s.ID)
		}
		return err
	})
	return s
}

// await waits until the status of a load balancer on a node is as wanted.
func (w *world) await(t *testing.T, i int, name string,
	wanted func(balancer.LoadBalancerStatus) bool) balancer.LoadBalancerStatus {
	t.Helper()
	var found balancer.LoadBalancerStatus
	eventually(t, func() error {
		// Without a healthy backend a node is not ready, and says so.
		s, err := w.apps[i].client.Snapshot(t.Context())
		if err != nil {
			return err
		}
		for _, lb := range s.LoadBalancers {
			if lb.Name != name {
				continue
			}
			if found = lb; wanted(lb) {
				return nil
			}
			return fmt.Errorf("%s says of %s: %+v", s.ID, name, lb)
		}
		return fmt.Errorf("%s has no load balancer %s", s.ID, name)
	})
	return found
}

// served tells whether a plane serves with that many backends.
func served(plane balancer.PlaneName, up int) func(balancer.LoadBalancerStatus) bool {
	return func(lb balancer.LoadBalancerStatus) bool {
		n := 0
		for _, b := range lb.Backends {
			if b.State == balancer.Up {
				n++
			}
		}
		return lb.Plane == plane && lb.Moving == "" && lb.Error == "" && n == up
	}
}

// eventually tries until it works.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Fatalf("%v later: %v", patience, err)
}

// holder is the index of the peer whose status says that it holds.
func (w *world) holder(t *testing.T) int {
	t.Helper()
	found := -1
	eventually(t, func() error {
		found = -1
		for i, p := range w.apps[:worker] {
			s, err := p.status(t.Context())
			if err == nil && s.Group.Holding {
				if found >= 0 {
					return fmt.Errorf("both %s and %s say that they hold", w.apps[found].node.Name, s.ID)
				}
				found = i
			}
		}
		if found < 0 {
			return fmt.Errorf("nobody says that it holds")
		}
		return nil
	})
	return found
}

// resolve starts to ask the link who answers for the VIP.
func (w *world) resolve(t *testing.T, unicast ...net.HardwareAddr) {
	t.Helper()
	resolver, err := w.watcher.Resolve(t.Context(), lab.Resolve{
		VIP: w.vip(), Every: 5 * patience / (30 * 1000), Unicast: unicast,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.resolver = resolver
}

// oneAnswer checks that since resolve two machines never answered for the VIP
// at once, and nobody but the peers answered.
func (w *world) oneAnswer(t *testing.T) {
	t.Helper()
	macs := map[string]bool{}
	for _, n := range w.nodes[:worker] {
		macs[n.MAC().String()] = true
	}
	claims := w.resolver.Replies()
	if two := claims.Overlap(); two > 0 {
		t.Errorf("two machines answered for %s at the same time:\n%s", w.vip(), claims.Around())
	}
	for _, mac := range claims.MACs() {
		if !macs[mac] {
			t.Errorf("%s, which is no peer's, answered for %s", mac, w.vip())
		}
	}
}
