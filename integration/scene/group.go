package scene

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// AddNode adds a machine that may join the group, with a server of its own if
// servers stand on the nodes, and returns its index.
func (s *Scene) AddNode() (int, error) {
	i := len(s.Nodes)
	n, err := s.Lab.Machine(fmt.Sprintf("n%d", i+1), s.addrs(11+i)...)
	if err != nil {
		return -1, err
	}
	s.Nodes = append(s.Nodes, n)
	if !s.Stacked {
		return i, nil
	}
	anywhere := netip.IPv6Unspecified()
	if s.Family == IPv4 {
		anywhere = netip.IPv4Unspecified()
	}
	_, err = s.servers.Serve(n, fmt.Sprintf("server%d", i+1), netip.AddrPortFrom(anywhere, Port), nil)
	return i, err
}

// PeersAsBackends rewrites the configuration: all peers are the backends. Nodes that
// join get a second file.
func (a *Appliance) PeersAsBackends(o Settings) error {
	var b strings.Builder
	b.WriteString("vips:\n")
	for _, vip := range a.scene.VIPs {
		fmt.Fprintf(&b, "- %q\n", vip)
	}
	fmt.Fprintf(&b, "group:\n  keyFile: %s\n", filepath.Join(a.scene.Dir, "group.key"))
	if o.Plane != "" {
		fmt.Fprintf(&b, "dataPlane: %s\n", o.Plane)
	}
	fmt.Fprintf(&b, "addPeersAsBackends: true\nloadBalancers:\n- name: test\n  port: %d\n  check: {type: tcp}\n", Port)
	joins := b.String()
	b.WriteString("peers:\n")
	for i := range 3 {
		fmt.Fprintf(&b, "- %q\n", a.Peer(i))
	}
	if err := os.WriteFile(a.config(), []byte(b.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(a.joining(), []byte(joins), 0o644)
}

// Peer is node i as lists of peers have it, with all its addresses.
func (a *Appliance) Peer(i int) string {
	var at []string
	for _, p := range a.scene.addrs(11 + i) {
		at = append(at, p.Addr().String())
	}
	return a.scene.Nodes[i].Name + "=" + strings.Join(at, "+")
}

func (a *Appliance) joining() string { return filepath.Join(a.scene.Dir, "joining.yaml") }

// Join starts the appliance on node i with a file that lists nobody, to join
// the group by the peer on node at.
func (a *Appliance) Join(i, at int, more ...string) error {
	return a.launch(i, append([]string{"--config", a.joining(), "--join", a.scene.Addr(at).String(), "--id",
		a.scene.Nodes[i].Name}, more...))
}

// StartWith is Start with more arguments.
func (a *Appliance) StartWith(i int, more ...string) error {
	return a.launch(i, append([]string{"--config", a.config()}, more...))
}

// StartAs is Start with another program, such as that of another version.
func (a *Appliance) StartAs(i int, binary string) error {
	return a.launchAs(i, binary, []string{"--config", a.config()})
}

func (a *Appliance) launch(i int, args []string) error { return a.launchAs(i, a.binary, args) }

func (a *Appliance) launchAs(i int, binary string, args []string) error {
	for len(a.processes) <= i {
		a.processes = append(a.processes, nil)
	}
	log, err := os.OpenFile(a.log(i), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	cmd := exec.Command(binary, append([]string{"start", "--data-dir", a.data(i), "--socket", a.socket(i)}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	fmt.Fprintf(log, "--- start at %s\n", time.Now().Format(time.RFC3339Nano))
	a.processes[i], err = a.scene.Nodes[i].Start(cmd)
	return err
}

// Say runs a command of the appliance against node i.
func (a *Appliance) Say(ctx context.Context, i int, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, a.binary, args...)
	cmd.Env = append(os.Environ(), "APPLIANCE_SOCKET="+a.socket(i))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("appliance %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Recover runs the recovery on the data of node i, on that node.
func (a *Appliance) Recover(ctx context.Context, i int, args ...string) (string, error) {
	var out strings.Builder
	cmd := exec.CommandContext(ctx, a.binary,
		append([]string{"recover", "--config", a.config(), "--data-dir", a.data(i)}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := a.scene.Nodes[i].Start(cmd)
	if err != nil {
		return "", err
	}
	err = p.Wait()
	return out.String(), err
}

// Data is where node i keeps its data.
func (a *Appliance) Data(i int) string { return a.data(i) }

// Runs says whether the appliance on node i runs.
func (a *Appliance) Runs(i int) bool {
	if i >= len(a.processes) || a.processes[i] == nil {
		return false
	}
	select {
	case <-a.processes[i].Done():
		return false
	default:
		return true
	}
}
