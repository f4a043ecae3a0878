package convert_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/balancer/forward"
	"appliance/configs"
	"appliance/convert"
	"appliance/node"
	"appliance/script"
)

// TestMain is also the program that checks run programs by.
func TestMain(m *testing.M) {
	script.RunIfChild()
	os.Exit(m.Run())
}

var compareFor = flag.Duration("compare.for", 0,
	"for how long programs and what is made of their configurations are compared; 0: one configuration of each")

// A rival is a program whose configurations are converted.
type rival struct {
	kind     convert.Format
	command  []string
	generate func(g *generator) string
}

var rivals = []rival{
	{convert.HAProxy, []string{"haproxy", "-db", "-f"}, (*generator).haproxy},
	{convert.Nginx, []string{"nginx", "-g", "daemon off;", "-c"}, (*generator).nginx},
	{convert.Keepalived, []string{"keepalived", "-n", "-l", "-D", "-C", "-p", "DIR/pid", "-c", "DIR/checkers", "-f"},
		(*generator).keepalived},
}

// TestServesTheSame has haproxy and nginx serve generated configurations, and our user space what is made of them. The
// same clients, who connect to the same addresses while the same servers are down, reach the same servers.
func TestServesTheSame(t *testing.T) {
	for n, r := range rivals {
		t.Run(string(r.kind), func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(r.command[0]); err != nil {
				t.Skipf("%v: integration/setup.sh test installs it", err)
			}
			if _, err := os.Stat("/proc/net/ip_vs"); err != nil && r.kind == convert.Keepalived {
				t.Skip("keepalived needs a kernel with ip_vs; make compare runs this in a virtual machine")
			}
			began := time.Now()
			seed := uint64(1)
			if *compareFor > 0 {
				seed = uint64(began.UnixNano())
			}
			for first := seed; !t.Failed(); seed++ {
				compare(t, r, byte(n), seed)
				if time.Since(began) >= *compareFor {
					t.Logf("%d configurations", seed-first+1)
					return
				}
			}
		})
	}
}

// A fault is a state of servers.
type fault struct {
	name   string
	states map[string]string // of servers that are not well
}

var faults = []fault{
	{"all are well", nil},
	{"a refuses", map[string]string{"a": refuses}},
	{"a and b do not answer", map[string]string{"a": silent, "b": silent}},
	{"b and c refuse, d is slow", map[string]string{"b": refuses, "c": refuses, "d": slow}},
}

// compare compares a generated configuration.
func compare(t *testing.T, r rival, number byte, seed uint64) {
	t.Helper()
	var taken []uint16
	port := func() uint16 {
		for {
			if p := freePort(t, number); !slices.Contains(taken, p) {
				taken = append(taken, p)
				return p
			}
		}
	}
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), servers: map[string]*testServer{}}
	for i, name := range []string{"a", "b", "c", "d"} {
		at := netip.AddrFrom4([4]byte{127, 0, 2 + number, byte(i + 1)})
		s := &testServer{name: name, at: netip.AddrPortFrom(at, port())}
		g.servers[name] = s
		g.names = append(g.names, name)
		s.page, s.safe = s.show(t, i, false), s.show(t, i, true)
		s.mail = s.greetMail(t)
		s.become(t, "")
		defer s.stop()
	}
	for range 4 {
		g.ports = append(g.ports, port())
	}
	g.at = addresses
	if r.kind == convert.Keepalived && moves[0] == here(moves[0]) {
		g.at, g.moves = moves, g.IntN(3) > 0
	}
	config := r.generate(g)
	path := filepath.Join(t.TempDir(), string(r.kind)+".conf")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(config, "DIR", filepath.Dir(path))), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	result := ""
	var args []string
	for _, a := range append(slices.Clone(r.command[1:]), path) {
		args = append(args, strings.ReplaceAll(a, "DIR", filepath.Dir(path)))
	}
	cmd := exec.Command(r.command[0], args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		select {
		case err := <-ended:
			t.Errorf("%s has ended: %v", r.kind, err)
		default:
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-ended
		}
		if t.Failed() {
			t.Logf("seed %d\n%s\n%s\n%s", seed, config, said.String(), result)
		}
	}()
	res, err := convert.Convert([]convert.File{{Name: "f", Format: r.kind, Data: []byte(config)}}, convert.Addresses{})
	if err != nil && strings.Contains(err.Error(), "it refuses everybody") {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	result = string(res.YAML)
	cfg, err := load(res.YAML)
	if err != nil {
		t.Fatal(err)
	}
	moved := map[uint16]uint16{}
	for _, p := range g.ports {
		moved[p] = port()
	}
	stop := serve(t, cfg, moved)
	defer stop()
	covered := 0
	for _, f := range faults {
		for name, s := range g.servers {
			s.become(t, f.states[name])
		}
		for _, port := range g.ports {
			for _, vip := range g.at {
				if covers(cfg, port, vip) {
					covered++
				}
				g.same(t, f, netip.AddrPortFrom(vip, port), netip.AddrPortFrom(vip, moved[port]), covers(cfg, port, vip))
			}
		}
	}
	if covered < len(faults) {
		t.Errorf("only %d places were compared:\n%s", covered, res.YAML)
	}
}

// addresses are those of the machine to which clients connect, and clients their own.
var (
	addresses = []netip.Addr{netip.MustParseAddr("127.2.0.1"), netip.MustParseAddr("127.2.0.2")}
	// moves are those that no loopback interface has by itself; make compare gives them to the virtual machine.
	moves   = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}
	clients = []netip.Addr{netip.MustParseAddr("127.0.1.1"), netip.MustParseAddr("127.0.1.77"),
		netip.MustParseAddr("127.0.1.200")}
)

// covers reports whether a load balancer of ours is served there.
func covers(cfg *configs.Config, port uint16, a netip.Addr) bool {
	return slices.ContainsFunc(cfg.LoadBalancers, func(lb configs.LoadBalancerEntry) bool {
		return lb.Port == port && (!lb.BindToVIP || slices.Contains(lb.Listen, a) || slices.Contains(lb.VIPs, a))
	})
}

// here is a if this machine has it, and no address otherwise.
func here(a netip.Addr) netip.Addr {
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return netip.Addr{}
	}
	l.Close()
	return a
}

// same waits until clients of both places reach the same servers.
func (g *generator) same(t *testing.T, f fault, theirs, ours netip.AddrPort, covered bool) {
	t.Helper()
	often := 12
	if slices.Contains(slices.Collect(maps.Values(f.states)), silent) {
		often = 3 // each may have to wait
	}
	for _, client := range clients {
		if !covered {
			if b := reached(client, ours, 1); servers(b) != "" {
				t.Fatalf("client %s of %s reaches %v with ours, which does not serve there", client, theirs, b)
			}
			continue
		}
		var a, b map[string]int
		for end := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			a, b = reached(client, theirs, often), reached(client, ours, often)
			if g.alike(theirs, f, a, b) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: client %s of %s reaches %v, and with ours %v", f.name, client, theirs, a, b)
			}
		}
	}
}

// alike reports whether two clients have reached the same servers. One who may come to several and stays with one may
// come to another, also where that one, which nobody checks, is not well and haproxy tries no other.
func (g *generator) alike(at netip.AddrPort, f fault, a, b map[string]int) bool {
	sticky, even := g.sticky[at] || g.sticky[anywhere(at.Port())], g.even[at] || g.even[anywhere(at.Port())]
	if sticky {
		ails := len(f.states) > 0 && servers(a) == ""
		return len(servers(b)) == 1 && (ails || len(servers(a)) == 1) || servers(a) == "" && servers(b) == ""
	}
	if servers(a) != servers(b) || a[""] == 0 && b[""] > 0 {
		return false
	}
	for name, n := range a {
		if even && len(a) > 1 && a[""] == 0 && b[""] == 0 && sum(a) == 12 && (n-b[name] > 2 || b[name]-n > 2) {
			return false
		}
	}
	return true
}

// servers are the names of the servers that were reached.
func servers(reached map[string]int) string {
	names := slices.Sorted(maps.Keys(reached))
	return strings.Join(names, "")
}

func sum(reached map[string]int) (n int) {
	for _, one := range reached {
		n += one
	}
	return n
}

// reached is how often a client comes to which server; the empty name is none.
func reached(client netip.Addr, at netip.AddrPort, often int) map[string]int {
	all := map[string]int{}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0)), Timeout: 5 * time.Second}
	for range often {
		name := ""
		if conn, err := d.Dial("tcp", at.String()); err == nil {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			said, _ := io.ReadAll(conn) // a reset says no as well as the end does
			conn.Close()
			name = string(said)
		}
		all[name]++
	}
	return all
}

// serve has user space serve a configuration, at other ports.
func serve(t *testing.T, cfg *configs.Config, ports map[uint16]uint16) (stop func()) {
	t.Helper()
	lbs := cfg.ForBalancer()
	for i := range lbs {
		lbs[i].Plane = balancer.UserSpace
		for j, f := range lbs[i].Frontends {
			lbs[i].Frontends[j] = netip.AddrPortFrom(f.Addr(), ports[f.Port()])
		}
	}
	var b *balancer.Balancer
	plane := forward.New(forward.Config{Report: func(to balancer.Target, err error) { b.Report(to, err) }, Loops: 1})
	b, err := balancer.New(balancer.Config{Planes: []balancer.Plane{plane}, LoadBalancers: lbs,
		Checker: node.NewChecker, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := plane.Close(); err != nil {
			t.Error(err)
		}
	}
}

// freePort is a port below those that the kernel gives to clients, which nobody listens on. Each rival has its own.
func freePort(t *testing.T, number byte) uint16 {
	t.Helper()
	for range 1000 {
		port := 10_000 + 6000*uint16(number) + uint16(rand.IntN(6000))
		if l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port)); err == nil {
			endListening(t, l)
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// The states of a server that is not well.
const (
	refuses = "refuses"
	silent  = "silent" // what it listens on is full
	slow    = "slow"   // it speaks late
)

// A testServer says its name.
type testServer struct {
	name  string
	at    netip.AddrPort
	page  uint16 // the port of its HTTP server, which is always well
	safe  uint16 // that of the same over TLS
	mail  uint16 // that of its SMTP server
	state string
	end   func()
}

func (s *testServer) stop() {
	if s.end != nil {
		s.end()
		s.end = nil
	}
}

// show has the server show a page with its name, and another with the status of the next server, and returns the port.
func (s *testServer) show(t *testing.T, number int, overTLS bool) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(s.at.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	statuses := []int{200, 404, 503, 302}
	page := func(w http.ResponseWriter, r *http.Request) {
		shown := number
		if r.URL.Path == "/other" {
			shown = (number + 1) % len(statuses)
		}
		w.WriteHeader(statuses[shown])
		fmt.Fprint(w, "I am "+s.name)
	}
	at := uint16(l.Addr().(*net.TCPAddr).Port)
	web := httptest.NewUnstartedServer(http.HandlerFunc(page))
	web.Listener.Close()
	web.Listener, web.Config.ErrorLog = l, log.New(io.Discard, "", 0)
	t.Cleanup(web.Close)
	if overTLS {
		web.StartTLS()
	} else {
		web.Start()
	}
	return at
}

// greetMail has the server take mail, and returns the port.
func (s *testServer) greetMail(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(s.at.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprint(conn, "220 "+s.name+" ESMTP\r\n")
				for in := bufio.NewScanner(conn); in.Scan(); {
					if fmt.Fprint(conn, "250 well\r\n"); strings.HasPrefix(in.Text(), "QUIT") {
						return
					}
				}
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// become gives the server another state.
func (s *testServer) become(t *testing.T, state string) {
	t.Helper()
	if s.end != nil && s.state == state {
		return
	}
	s.stop()
	s.state, s.end = state, func() {}
	switch state {
	case refuses:
	case silent:
		s.end = fill(t, s.at)
	default:
		l, err := net.Listen("tcp", s.at.String())
		if err != nil {
			t.Fatal(err)
		}
		s.end = func() { endListening(t, l) }
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					if state == slow {
						time.Sleep(20 * time.Millisecond)
					}
					fmt.Fprint(conn, s.name)
					conn.Close()
				}()
			}
		}()
	}
}

// fill listens with no room for a connection, so that those who connect get no answer.
func fill(t *testing.T, at netip.AddrPort) (end func()) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}), syscall.Listen(fd, 0))
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	for unanswered := 0; unanswered < 2; { // one alone may be that of a busy machine
		conn, err := net.DialTimeout("tcp", at.String(), 150*time.Millisecond)
		if unanswered++; err == nil {
			held, unanswered = append(held, conn), 0
		}
	}
	return func() {
		for _, c := range held {
			c.Close()
		}
		_ = syscall.Shutdown(fd, syscall.SHUT_RD) // endListening
		syscall.Close(fd)
	}
}

// endListening frees the address of l at once. A program that is being started has a copy of the socket for a moment,
// and while the copy listens the address is in use.
func endListening(t *testing.T, l net.Listener) {
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RD) })
	}
	if err != nil {
		t.Error(err)
	}
	l.Close()
}
