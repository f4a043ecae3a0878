package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	_ "embed"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/lab"
	"appliance/status"
	"appliance/status/client"
)

// A guide is a page of the documentation whose blocks of commands are run by the label that stands before each.
type guide map[string]string

// labelled finds the blocks of commands that a test runs, with their labels.
var labelled = regexp.MustCompile("(?s)<!-- run: ([^>]+) -->\n *```sh\n(.*?)```")

// readGuide reads a page of docs.
func readGuide(t *testing.T, page string) guide {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	g := guide{}
	for _, m := range labelled.FindAllStringSubmatch(string(text), -1) {
		g[m[1]] += m[2] // those of one label are one after the other
	}
	return g
}

// guidesOnly skips what takes too long, or too calm a machine, for make test.
func guidesOnly(t *testing.T) {
	t.Helper()
	if os.Getenv("APPLIANCE_TEST_GUIDES") == "" {
		t.Skip("make guides runs it")
	}
}

// slowly has flags mean what patient writes into a file.
const slowly = "export APPLIANCE_HEARTBEAT=3s\n"

// A box is a machine with a file system of its own where the guides write, on which systemctl starts and stops what
// the units in /etc/systemd/system and /lib/systemd/system name.
type box struct {
	*lab.Machine
	dir   string // on this host; /root there is its home
	shell *lab.Process
	in    io.Writer
	out   *bufio.Reader
}

//go:embed testdata/systemctl
var systemctl []byte

// enter makes $1 what the guides may write to, and reads commands.
const enter = `set -e
cp -a /etc/. "$1/etc"
mount --bind "$1/etc" /etc
mount --bind "$1/lib" /var/lib
mount --bind "$1/run" /run
mount --bind "$1/bin" /usr/local/bin
mount --bind "$1/home" /root
cd /root
exec bash`

// newBox makes a box of a machine. Its home has the program, as a guide's reader has it.
func newBox(t *testing.T, m *lab.Machine) *box {
	t.Helper()
	b := &box{Machine: m, dir: filepath.Join(t.TempDir(), m.Name)}
	for _, d := range []string{"etc", "lib", "run/systemd/system", "bin", "home"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	b.write(t, "bin/appliance", string(program), 0o755)
	b.write(t, "bin/systemctl", string(systemctl), 0o755)
	// The process is the first of a space of its own, and whatever it starts ends with it.
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", enter,
		"bash", b.dir)
	cmd.Env = append(os.Environ(), "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	b.in, b.out = in, bufio.NewReader(out)
	if b.shell, err = m.Start(cmd); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s said:\n%s", m.Name, b.log())
		}
		b.shell.Kill()
		out.Close()
	})
	b.run(t, "true") // the files of this host have been copied by then
	return b
}

// write writes a file of the box; the path is one below its directory on this host.
func (b *box) write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	path = filepath.Join(b.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// patient has a configuration say what the reader of a guide does not need: many machines share this one, and a slow
// peer is not a dead one.
func (b *box) patient(t *testing.T, config string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, config))
	if err != nil {
		t.Fatal(err)
	}
	slow, found := strings.Replace(string(text), "\ngroup:\n", "\ngroup:\n  heartbeat: 3s\n", 1), true
	if slow == string(text) {
		slow, found = string(text)+"group: {heartbeat: 3s}\n", !strings.Contains(string(text), "group:")
	}
	if !found {
		t.Fatalf("no place for a heartbeat in\n%s", text)
	}
	b.write(t, config, slow, 0o600)
}

// try runs commands as a person would who looks at each, and returns what they print.
func (b *box) try(commands string) (string, error) {
	const script, output = "home/.commands", "home/.output"
	if err := os.WriteFile(filepath.Join(b.dir, script), []byte(commands), 0o644); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(b.in, "bash -ex /root/.commands > /root/.output 2>&1 < /dev/null; echo $?"); err != nil {
		return "", fmt.Errorf("%s has ended: %w", b.Name, err)
	}
	code, err := b.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s has ended: %w", b.Name, err)
	}
	said, err := os.ReadFile(filepath.Join(b.dir, output))
	if err == nil && code != "0\n" {
		err = fmt.Errorf("on %s: exit code %s\n%s", b.Name, strings.TrimSpace(code), said)
	}
	return string(said), err
}

// run is try, and fails the test with what fails.
func (b *box) run(t *testing.T, commands string) string {
	t.Helper()
	if commands == "" {
		t.Fatal("the page has no such commands to run")
	}
	said, err := b.try(commands)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// runAll runs commands on several boxes at once.
func runAll(t *testing.T, commands string, boxes ...*box) {
	t.Helper()
	if commands == "" {
		t.Fatal("the page has no such commands to run")
	}
	var g errgroup.Group
	for _, b := range boxes {
		g.Go(func() error {
			_, err := b.try(commands)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// log is what the services of the box said.
func (b *box) log() string {
	var all strings.Builder
	logs, _ := filepath.Glob(filepath.Join(b.dir, "run", "*.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		fmt.Fprintf(&all, "-- %s\n%s", filepath.Base(path), text)
	}
	return all.String()
}

// status is what the appliance of the box says of itself.
func (b *box) status(ctx context.Context) (status.Snapshot, error) {
	return client.New(filepath.Join(b.dir, "run/appliance/appliance.sock")).Snapshot(ctx)
}

// ready waits until the appliances of all boxes would serve, and one of them holds.
func ready(t *testing.T, boxes ...*box) {
	t.Helper()
	for _, b := range boxes {
		eventually(t, func() error {
			s, err := b.status(t.Context())
			if err == nil && len(s.NotReady) > 0 {
				err = fmt.Errorf("%s is not ready: %s", b.Name, strings.Join(s.NotReadyTexts(), "; "))
			}
			if err == nil && s.Holder == "" {
				err = fmt.Errorf("%s knows of no holder", b.Name)
			}
			return err
		})
	}
}

// hand copies files from a box's home to others'.
func (b *box) hand(t *testing.T, file, name string, to ...*box) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range to {
		o.write(t, filepath.Join("home", name), string(text), 0o600)
	}
}

// A street is the network of the guides, with the addresses that they have:
//
//	.2 .3 .4     boxes, or witnesses
//	.11 .12 .13  servers, each on port 6443 of every address
//	.50          the client
//	.200 and on  who asks for the virtual address, which is .10
type street struct {
	family   string // "IPv4", "IPv6" or "dual"
	lab      *lab.Lab
	boxes    []*box
	client   *lab.Machine
	watcher  *lab.Machine
	servers  lab.Servers
	machines []*lab.Machine // of the servers, where these are no boxes
	tls      *tls.Config    // of the clients, where the servers speak TLS
}

// documentation are the prefixes that examples have (RFC 5737, RFC 3849).
func (s *street) addrs(n int) (all []netip.Prefix) {
	if s.family != "IPv6" {
		all = append(all, netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", n)))
	}
	if s.family != "IPv4" {
		all = append(all, netip.MustParsePrefix(fmt.Sprintf("2001:db8::%d/64", n)))
	}
	return all
}

// target is the virtual address of a family, and the port of the apiserver.
func (s *street) targets() (all []netip.AddrPort) {
	for _, p := range s.addrs(10) {
		all = append(all, netip.AddrPortFrom(p.Addr(), 6443))
	}
	return all
}

func newStreet(t *testing.T, family string, boxes int) *street {
	t.Helper()
	s := openStreet(t, family)
	s.build(t, boxes, nil)
	return s
}

// build puts boxes, servers and clients on a street.
func (s *street) build(t *testing.T, boxes int, server *tls.Config) {
	t.Helper()
	for i := range boxes {
		s.boxes = append(s.boxes, newBox(t, s.machine(t, fmt.Sprintf("lb%d", i+1), s.addrs(2+i)...)))
	}
	for i := range 3 {
		m := s.machine(t, fmt.Sprintf("s%d", i+1), s.addrs(11+i)...)
		s.serve(t, m, server)
		s.machines = append(s.machines, m)
	}
	s.populate(t)
}

// newCluster makes a street whose boxes are the servers too: control-plane nodes from .11 on.
func newCluster(t *testing.T, family string, nodes int) *street {
	t.Helper()
	s := openStreet(t, family)
	server := s.apiserver(t, 10, 11, 12, 13, 14)
	for i := range nodes {
		m := s.machine(t, fmt.Sprintf("cp%d", i+1), s.addrs(11+i)...)
		s.serve(t, m, server)
		s.boxes = append(s.boxes, newBox(t, m))
	}
	s.populate(t)
	return s
}

// apiserver is what servers need that speak TLS as kube-apiservers do, and are valid for these numbers' addresses. The
// clients trust them.
func (s *street) apiserver(t *testing.T, numbers ...int) *tls.Config {
	t.Helper()
	authority, err := lab.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	var hosts []string
	for _, n := range numbers {
		for _, p := range s.addrs(n) {
			hosts = append(hosts, p.Addr().String())
		}
	}
	server, err := authority.Server(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	s.tls = authority.Client(hosts[0])
	return server
}

// openStreet makes a street on which nothing is yet.
func openStreet(t *testing.T, family string) *street {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	inputs(t)
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	s := &street{family: family, lab: l}
	t.Cleanup(func() {
		s.servers.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *street) machine(t *testing.T, name string, addrs ...netip.Prefix) *lab.Machine {
	t.Helper()
	m, err := s.lab.Machine(name, addrs...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// serve starts a server on port 6443 of every address of a machine.
func (s *street) serve(t *testing.T, m *lab.Machine, config *tls.Config) {
	t.Helper()
	any := netip.IPv6Unspecified()
	if s.family == "IPv4" {
		any = netip.IPv4Unspecified()
	}
	if _, err := s.servers.Serve(m, m.Name, netip.AddrPortFrom(any, 6443), config); err != nil {
		t.Fatal(err)
	}
}

// populate adds who is neither box nor server.
func (s *street) populate(t *testing.T) {
	t.Helper()
	s.client = s.machine(t, "client", s.addrs(50)...)
	var many []netip.Prefix
	for _, p := range s.addrs(200) {
		many = append(many, lab.Range(p, 32)...)
	}
	s.watcher = s.machine(t, "watcher", many...)
}

// A move is what clients and the link see of a virtual address while one program takes it over from another.
type move struct {
	vip      netip.AddrPort
	resolver *lab.Resolver
	clients  patients
	open     *lab.Conns
}

// watch begins to look at the first of the virtual addresses, which is answered for.
func (s *street) watch(t *testing.T) *move {
	t.Helper()
	m := &move{vip: s.targets()[0]}
	if err := s.client.WaitPort(patient(t), m.vip); err != nil {
		t.Fatal(err)
	}
	var err error
	m.resolver, err = s.watcher.Resolve(t.Context(), lab.Resolve{VIP: m.vip.Addr(), Every: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.resolver.Stop() })
	m.clients = s.ask(t)
	m.open, err = s.client.OpenConns(t.Context(), lab.LongConns{Target: m.vip, N: longConns, Every: 50 * time.Millisecond,
		Patience: patience, TLS: s.tls})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.open.Close)
	return m
}

// goOn wants every open connection to be served still.
func (m *move) goOn(t *testing.T, happened string) {
	t.Helper()
	if n := m.open.Await(patient(t), time.Second); n.OK != longConns {
		t.Errorf("after %s: %+v", happened, n)
	}
}

// isOver wants the address to be answered for by first alone, as it has said, and the open connections to go on.
func (m *move) isOver(t *testing.T, s *street, first *box, said string) {
	t.Helper()
	if !strings.Contains(said, "answers for "+m.vip.Addr().String()) {
		t.Errorf("takeover says: %s", said)
	}
	ready(t, s.boxes...)
	m.goOn(t, "the takeover")
	for _, mac := range m.resolver.Replies().MACs() {
		if mac != first.MAC().String() {
			t.Errorf("%s answered for the address during the takeover, and not %s alone", mac, first.Name)
		}
	}
}

// ask starts clients of the virtual addresses that are as patient as TCP: one that fails was turned away.
func (s *street) ask(t *testing.T) (all patients) {
	for _, target := range s.targets() {
		p := s.client.Probe(t.Context(), lab.Probe{Target: target, Every: 5 * time.Millisecond, Patience: patience,
			TLS: s.tls})
		t.Cleanup(p.Stop)
		all = append(all, p)
	}
	return all
}
