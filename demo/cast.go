package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"appliance/lab"
	"appliance/status/client"
)

// port is the load balancer's and the servers', as of a kube-apiserver.
const port = 6443

// A cast is everybody on stage: three peers with a server beside each, a
// client, and a watcher who asks the link for the owner of the address.
type cast struct {
	binary string
	dir    string // keys, data, sockets and logs; gone in the end
	vip    netip.Addr
	trust  *tls.Config // the client's

	lab      *lab.Lab
	servers  lab.Servers
	peers    []*peer
	client   *lab.Machine
	probe    atomic.Pointer[lab.RunningProbe] // once there is something to ask
	resolver *lab.Resolver
}

// peer is one machine with an appliance and a server.
type peer struct {
	id      string
	node    *lab.Machine
	addr    netip.Addr
	server  *lab.Server
	process atomic.Pointer[lab.Process] // the last one
	status  *client.Client
	socket  string
}

// assemble builds the machines and starts everything on them. Whatever it
// returns is to be dismissed.
func assemble(ctx context.Context, o RunOptions) (*cast, error) {
	c := &cast{binary: o.Binary}
	var err error
	if c.dir, err = os.MkdirTemp("", "appliance-demo-"); err != nil {
		return c, err
	}
	key, err := exec.CommandContext(ctx, c.binary, "keygen").Output()
	if err != nil {
		return c, fmt.Errorf("%s keygen: %w", c.binary, err)
	}
	if err := os.WriteFile(c.keyFile(), key, 0o600); err != nil {
		return c, err
	}
	if c.lab, err = lab.New(lab.Layout{}); err != nil {
		return c, err
	}

	net, bits := "10.77.0.%d", 24
	anywhere := netip.IPv4Unspecified()
	if o.IPv6 {
		net, bits = "fd77::%d", 64
		anywhere = netip.IPv6Unspecified()
	}
	addr := func(n int) netip.Prefix {
		return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf(net, n)), bits)
	}
	c.vip = addr(10).Addr()

	authority, err := lab.NewAuthority()
	if err != nil {
		return c, err
	}
	c.trust = authority.Client(c.vip.String())
	config, err := authority.Server(c.vip.String())
	if err != nil {
		return c, err
	}
	for i := range 3 {
		p := &peer{id: fmt.Sprintf("p%d", i+1), addr: addr(11 + i).Addr()}
		p.socket = filepath.Join(c.dir, p.id+".sock")
		p.status = client.New(p.socket)
		if p.node, err = c.lab.Machine(p.id, addr(11+i)); err != nil {
			return c, err
		}
		// The server has the port on every address of its machine, as an
		// apiserver does; the appliance shares it.
		if p.server, err = c.servers.Serve(p.node, p.id, netip.AddrPortFrom(anywhere, port), config); err != nil {
			return c, err
		}
		c.peers = append(c.peers, p)
	}
	for _, p := range c.peers {
		if err := c.start(p); err != nil {
			return c, err
		}
	}
	if c.client, err = c.lab.Machine("client", addr(50)); err != nil {
		return c, err
	}
	watcher, err := c.lab.Machine("watcher", lab.Range(addr(200), 32)...)
	if err != nil {
		return c, err
	}
	c.resolver, err = watcher.Resolve(ctx, lab.Resolve{VIP: c.vip})
	return c, err
}

// ask lets the client begin: a TLS request each 5 ms.
func (c *cast) ask(ctx context.Context) {
	c.probe.Store(c.client.Probe(ctx, lab.Probe{Target: netip.AddrPortFrom(c.vip, port), TLS: c.trust}))
}

func (c *cast) keyFile() string { return filepath.Join(c.dir, "group.key") }

// arguments are how p's appliance is started: all other settings are the
// defaults.
func (c *cast) arguments(p *peer) []string {
	var peers []string
	for _, q := range c.peers {
		peers = append(peers, q.id+"="+q.addr.String())
	}
	return []string{
		"start", "--id", p.id,
		"--vip", c.vip.String(),
		"--peers", strings.Join(peers, ","),
		"--group-key", c.keyFile(),
		"--data-dir", filepath.Join(c.dir, p.id),
		"--socket", p.socket,
	}
}

// start starts p's appliance, for the first time or again.
func (c *cast) start(p *peer) error {
	log, err := os.OpenFile(c.logFile(p), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	cmd := exec.Command(c.binary, c.arguments(p)...)
	cmd.Stdout, cmd.Stderr = log, log
	process, err := p.node.Start(cmd)
	if err != nil {
		return err
	}
	p.process.Store(process)
	return nil
}

func (c *cast) logFile(p *peer) string { return filepath.Join(c.dir, p.id+".log") }

// alive tells whether p's appliance runs.
func (p *peer) alive() bool {
	select {
	case <-p.process.Load().Done():
		return false
	default:
		return true
	}
}

// holder is the peer that answered last on the wire, or nil if nobody has
// for a while.
func (c *cast) holder() *peer {
	claim, ok := c.resolver.Last()
	if !ok || time.Since(claim.At) > 250*time.Millisecond {
		return nil
	}
	return c.byMAC(claim.MAC)
}

func (c *cast) byMAC(mac string) *peer {
	for _, p := range c.peers {
		if p.node.MAC().String() == mac {
			return p
		}
	}
	return nil
}

// logs are the last lines of each peer's log, for when the story goes wrong.
func (c *cast) logs() string {
	var b strings.Builder
	for _, p := range c.peers {
		text, err := os.ReadFile(c.logFile(p))
		if err != nil {
			continue
		}
		lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
		if len(lines) > 8 {
			lines = lines[len(lines)-8:]
		}
		for _, l := range lines {
			fmt.Fprintf(&b, "\n%s: %s", p.id, l)
		}
	}
	return b.String()
}

// dismiss ends everything and removes every trace.
func (c *cast) dismiss() error {
	var errs []error
	if probe := c.probe.Load(); probe != nil {
		probe.Stop()
	}
	if c.resolver != nil {
		errs = append(errs, c.resolver.Stop())
	}
	c.servers.Close()
	if c.lab != nil {
		errs = append(errs, c.lab.Close())
	}
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}
