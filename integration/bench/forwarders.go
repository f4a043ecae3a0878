package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"appliance/lab"
)

// serverPort is where the servers are. The forwarders have it too, so that
// the data plane direct is like the others.
const serverPort = 6443

// ordinaryPriority is the user space of an appliance that may not raise its own
// priority, as it does where it is allowed to.
const ordinaryPriority = "appliance userspace, nice 0"

// A forwarder is one way from the client to the servers.
type forwarder struct {
	name string
	// to are the addresses that clients connect to.
	to   []netip.AddrPort
	node *lab.Machine // where it runs; nil where nothing does
	proc *lab.Process
}

// A field is the machines of the benchmark: a client, a machine for each
// forwarder, three servers, and three nodes that are servers and forwarders
// at once.
type field struct {
	lab        *lab.Lab
	dir        string
	binary     string
	client     *lab.Machine
	servers    []*lab.Machine
	stations   []*lab.Process // the servers' processes
	forwarders []*forwarder
	number     int
}

func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(n)}) }

func newField(ctx context.Context, binary string, only []string) (f *field, err error) {
	f = &field{binary: binary}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if f.dir, err = os.MkdirTemp("", "appliance-bench-"); err != nil {
		return f, err
	}
	if f.lab, err = lab.New(lab.Layout{}); err != nil {
		return f, err
	}
	if f.client, err = f.node("client", 2); err != nil {
		return f, err
	}
	for i := range 3 {
		n, err := f.node("b"+strconv.Itoa(i+1), 21+i)
		if err != nil {
			return f, err
		}
		f.servers = append(f.servers, n)
		p, err := f.station(n)
		if err != nil {
			return f, err
		}
		f.stations = append(f.stations, p)
	}
	for _, add := range []struct {
		name string
		make func(*forwarder) error
	}{
		{"no balancer", f.none},
		{"appliance direct", f.direct},
		{"appliance nftables", func(w *forwarder) error { return f.worker(w, "nftables") }},
		{"appliance userspace", f.listener},
		{ordinaryPriority, f.listener},
		{"appliance userspace, VIP", func(w *forwarder) error { return f.worker(w, "userspace") }},
		{"haproxy", f.haproxy},
		{"nginx stream", f.nginx},
		{"nft by hand", f.nft},
		{applianceIPVS, func(w *forwarder) error { return f.worker(w, "ipvs") }},
		{ipvsByHand, f.ipvsadm},
	} {
		takesIPVS := add.name == applianceIPVS || add.name == ipvsByHand
		if len(only) > 0 && !contains(only, add.name) || len(only) == 0 && takesIPVS {
			continue
		}
		w := &forwarder{name: add.name}
		if err := add.make(w); err != nil {
			return f, fmt.Errorf("%s: %w", w.name, err)
		}
		f.forwarders = append(f.forwarders, w)
	}
	for _, w := range f.forwarders {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := f.client.WaitPort(ctx, w.to[0])
		cancel()
		if err != nil {
			return f, fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return f, nil
}

func contains(only []string, name string) bool {
	for _, o := range only {
		if strings.TrimSpace(o) == name {
			return true
		}
	}
	return false
}

func (f *field) close() error {
	var err error
	if f.lab != nil {
		err = f.lab.Close()
	}
	if f.dir != "" {
		os.RemoveAll(f.dir)
	}
	return err
}

// node makes a machine that many connections can pass.
func (f *field) node(name string, n int) (*lab.Machine, error) {
	m, err := f.lab.Machine(name, netip.PrefixFrom(address(n), 24))
	if err != nil {
		return nil, err
	}
	return m, m.Do(func() error {
		for key, value := range map[string]string{
			"net/ipv4/tcp_tw_reuse": "1",
			"net/core/somaxconn":    "16384",
		} {
			if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// machine is a node for a forwarder.
func (f *field) machine(w *forwarder) (n int, err error) {
	f.number++
	n = 29 + f.number
	w.node, err = f.node(fmt.Sprintf("f%d", f.number), n)
	return n, err
}

// station starts a server.
func (f *field) station(n *lab.Machine) (*lab.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "-serve", netip.AddrPortFrom(n.Addr(true), serverPort).String())
	cmd.Stderr = os.Stderr
	return n.Start(cmd)
}

func (f *field) backends() (all []string) {
	for _, n := range f.servers {
		all = append(all, netip.AddrPortFrom(n.Addr(true), serverPort).String())
	}
	return all
}

func (f *field) none(w *forwarder) error {
	for _, n := range f.servers {
		w.to = append(w.to, netip.AddrPortFrom(n.Addr(true), serverPort))
	}
	return nil
}

func (f *field) start(w *forwarder, n *lab.Machine, program string, args ...string) (err error) {
	cmd := exec.Command(program, args...)
	log, err := os.Create(filepath.Join(f.dir, n.Name+".log"))
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = log, log
	w.proc, err = n.Start(cmd)
	return err
}

// appliance writes a configuration and starts it.
func (f *field) appliance(w *forwarder, n *lab.Machine, config string) error {
	file := filepath.Join(f.dir, n.Name+".yaml")
	config += fmt.Sprintf("dataDir: %[1]s/%[2]s\nsocket: %[1]s/%[2]s.sock\nadmin: {listen: [\"off\"]}\nlinger: 0s\n",
		f.dir, n.Name)
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return err
	}
	if w.name != ordinaryPriority {
		return f.start(w, n, f.binary, "start", "--config", file)
	}
	return f.start(w, n, "setpriv", "--bounding-set", "-sys_nice", f.binary, "start", "--config", file)
}

const balanced = `loadBalancers:
- name: bench
  port: %d
  dataPlane: %s
  scheduler: %s
  check: {type: tcp}
  backends: [%s]
`

// listener is a worker that listens on its own address, as haproxy does.
func (f *field) listener(w *forwarder) error {
	n, err := f.machine(w)
	if err != nil {
		return err
	}
	w.to = []netip.AddrPort{netip.AddrPortFrom(address(n), serverPort)}
	return f.appliance(w, w.node, "role: worker\n"+fmt.Sprintf(balanced, serverPort, "userspace", "rr",
		strings.Join(f.backends(), ", "))+
		fmt.Sprintf("  listen: [%s]\n", address(n)))
}

// worker is a worker with a virtual address, to which the client has a route.
func (f *field) worker(w *forwarder, plane string) error {
	n, err := f.machine(w)
	if err != nil {
		return err
	}
	vip := address(n + 60)
	w.to = []netip.AddrPort{netip.AddrPortFrom(vip, serverPort)}
	if err := f.client.Route(netip.PrefixFrom(vip, 32), address(n)); err != nil {
		return err
	}
	return f.appliance(w, w.node, fmt.Sprintf("role: worker\nvips: [%s]\n", vip)+
		fmt.Sprintf(balanced, serverPort, plane, "rr", strings.Join(f.backends(), ", ")))
}

// direct is a group of three nodes that are the servers themselves.
func (f *field) direct(w *forwarder) error {
	vip := address(100)
	w.to = []netip.AddrPort{netip.AddrPortFrom(vip, serverPort)}
	var at []string
	for i := range 3 {
		at = append(at, address(101+i).String())
	}
	for i := range 3 {
		n, err := f.node("d"+strconv.Itoa(i+1), 101+i)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		// A server on every address, as an apiserver is.
		if _, err := n.Start(exec.Command(self, "-serve", fmt.Sprintf("0.0.0.0:%d", serverPort))); err != nil {
			return err
		}
		w.node = n
		if err := f.appliance(w, n, fmt.Sprintf("vips: [%s]\npeers: [%s]\ngroup: {insecure: true}\n", vip,
			strings.Join(at, ", "))+
			fmt.Sprintf(balanced, serverPort, "direct", "rr", strings.Join(at, ", "))); err != nil {
			return err
		}
	}
	return nil
}

func (f *field) haproxy(w *forwarder) error {
	n, err := f.machine(w)
	if err != nil {
		return err
	}
	w.to = []netip.AddrPort{netip.AddrPortFrom(address(n), serverPort)}
	var b strings.Builder
	fmt.Fprintf(&b, `global
    maxconn 9500
    nbthread 2
defaults
    mode tcp
    option redispatch
    timeout connect 5s
    timeout client 10m
    timeout server 10m
frontend k8s-api
    bind %s
    default_backend k8s-api
backend k8s-api
    balance roundrobin
    default-server inter 10s downinter 5s rise 2 fall 2 slowstart 60s weight 100
`, w.to[0])
	for i, s := range f.backends() {
		fmt.Fprintf(&b, "    server b%d %s check\n", i+1, s)
	}
	file := filepath.Join(f.dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return err
	}
	return f.start(w, w.node, "haproxy", "-db", "-f", file)
}

func (f *field) nginx(w *forwarder) error {
	n, err := f.machine(w)
	if err != nil {
		return err
	}
	w.to = []netip.AddrPort{netip.AddrPortFrom(address(n), serverPort)}
	var b strings.Builder
	fmt.Fprintf(&b, `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx-error.log warn;
worker_processes 2;
worker_rlimit_nofile 20000;
events { worker_connections 19000; }
stream {
    upstream kube_apiserver {
        least_conn;
`, f.dir)
	for _, s := range f.backends() {
		fmt.Fprintf(&b, "        server %s max_fails=3 fail_timeout=10s;\n", s)
	}
	fmt.Fprintf(&b, `    }
    server {
        listen %s backlog=4096;
        proxy_pass kube_apiserver;
        proxy_connect_timeout 1s;
    }
}
`, w.to[0])
	file := filepath.Join(f.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return err
	}
	return f.start(w, w.node, "nginx", "-c", file)
}

// nft is what one would write by hand: for scale, without checks.
func (f *field) nft(w *forwarder) error {
	n, err := f.machine(w)
	if err != nil {
		return err
	}
	w.to = []netip.AddrPort{netip.AddrPortFrom(address(n), serverPort)}
	rules := fmt.Sprintf(`table ip lab {
  chain pre {
    type nat hook prerouting priority dstnat;
    ip daddr %s tcp dport %d dnat to numgen inc mod 3 map { 0 : %s, 1 : %s, 2 : %s } : %d
  }
  chain post {
    type nat hook postrouting priority srcnat;
    tcp dport %d masquerade
  }
}
`, address(n), serverPort, f.servers[0].Addr(true), f.servers[1].Addr(true), f.servers[2].Addr(true),
		serverPort, serverPort)
	return w.node.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			return err
		}
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w\n%s", err, out)
		}
		return nil
	})
}
