package scene

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"appliance/lab"
	"appliance/status"
	"appliance/status/client"
)

// Compile builds the program under test into a new directory.
func Compile() (binary string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "appliance-test-")
	if err != nil {
		return "", nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // others than root run it, too
		return "", nil, err
	}
	binary = filepath.Join(dir, "appliance")
	cmd := exec.Command("go", "build", "-o", binary, "appliance")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("build the appliance: %w\n%s", err, out)
	}
	return binary, func() { os.RemoveAll(dir) }, nil
}

// An Appliance is the program under test, on the nodes of a scene.
type Appliance struct {
	scene     *Scene
	binary    string
	processes []*lab.Process
}

// Settings of the appliance that differ from its defaults.
type Settings struct {
	// Binary is the program.
	Binary string
	// Plane is the data plane; empty is the default.
	Plane string
}

// Appliance writes the configuration, the same for every node, and the group
// key. It starts nothing.
func (s *Scene) Appliance(o Settings) (*Appliance, error) {
	a := &Appliance{scene: s, binary: o.Binary, processes: make([]*lab.Process, len(s.Nodes))}
	key, err := exec.Command(o.Binary, "keygen").Output()
	if err != nil {
		return nil, fmt.Errorf("%s keygen: %w", o.Binary, err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "group.key"), key, 0o600); err != nil {
		return nil, err
	}
	return a, os.WriteFile(a.config(), []byte(a.yaml(o)), 0o644)
}

func (a *Appliance) config() string { return filepath.Join(a.scene.Dir, "appliance.yaml") }

func (a *Appliance) yaml(o Settings) string {
	var b strings.Builder
	b.WriteString("vips:\n")
	for _, vip := range a.scene.VIPs {
		fmt.Fprintf(&b, "- %q\n", vip)
	}
	b.WriteString("peers:\n")
	for i, n := range a.scene.Nodes {
		fmt.Fprintf(&b, "- id: %s\n  address: %q\n", n.Name, a.scene.Addr(i))
	}
	fmt.Fprintf(&b, "group:\n  keyFile: %s\n", filepath.Join(a.scene.Dir, "group.key"))
	check := "type: tcp"
	if late := a.scene.late(); late > 0 {
		fmt.Fprintf(&b, "  heartbeat: %v\n", late)
		check += fmt.Sprintf(", inter: %v", late)
	}
	if o.Plane != "" {
		fmt.Fprintf(&b, "dataPlane: %s\n", o.Plane)
	}
	b.WriteString("loadBalancers:\n")
	for i := range 1 + a.scene.Further {
		name := "test"
		if i > 0 {
			name += strconv.Itoa(i)
		}
		fmt.Fprintf(&b, "- name: %s\n  port: %d\n  check: {%s}\n  backends:\n", name, Port+i, check)
		for _, of := range a.scene.Backends {
			fmt.Fprintf(&b, "  - %q\n", netip.AddrPortFrom(of[0].Addr(), of[0].Port()+uint16(i)))
		}
	}
	return b.String()
}

// Start starts the appliance on node i, for the first time or again.
func (a *Appliance) Start(i int) error {
	log, err := os.OpenFile(a.log(i), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	cmd := exec.Command(a.binary, "start", "--config", a.config(),
		"--data-dir", a.data(i), "--socket", a.socket(i))
	cmd.Stdout, cmd.Stderr = log, log
	fmt.Fprintf(log, "--- start at %s\n", time.Now().Format(time.RFC3339Nano))
	a.processes[i], err = a.scene.Nodes[i].Start(cmd)
	return err
}

// StartAll starts the appliance on every node.
func (a *Appliance) StartAll() error {
	for i := range a.scene.Nodes {
		if err := a.Start(i); err != nil {
			return err
		}
	}
	return nil
}

// Process is what runs, or ran last, on node i.
func (a *Appliance) Process(i int) *lab.Process { return a.processes[i] }

// Kill kills the appliance on node i with SIGKILL, and waits for its end.
func (a *Appliance) Kill(i int) { a.processes[i].Kill() }

// Freeze suspends the process on node i (SIGSTOP).
func (a *Appliance) Freeze(i int) error { return a.processes[i].Signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (a *Appliance) Thaw(i int) error { return a.processes[i].Signal(syscall.SIGCONT) }

// Stop asks the appliance on node i to end, and waits for it.
func (a *Appliance) Stop(i int) error {
	if err := a.processes[i].Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return a.processes[i].Wait()
}

// Transfer has node i hand the VIPs over.
func (a *Appliance) Transfer(i int) error {
	out, err := exec.Command(a.binary, "transfer", "--socket", a.socket(i)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("transfer: %w: %s", err, out)
	}
	return nil
}

// Forget removes what the appliance on node i keeps on disk.
func (a *Appliance) Forget(i int) error { return os.RemoveAll(a.data(i)) }

// Status is what the appliance on node i says of itself.
func (a *Appliance) Status(ctx context.Context, i int) (status.Snapshot, error) {
	return client.New(a.socket(i)).Snapshot(ctx)
}

// AwaitReady waits until the appliance on each of the nodes is ready to serve the
// VIPs and all agree on the holder.
func (a *Appliance) AwaitReady(ctx context.Context, nodes ...int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		problem := a.problem(ctx, nodes)
		if problem == "" {
			return nil
		}
		for _, i := range nodes {
			select {
			case <-a.processes[i].Done():
				return fmt.Errorf("the appliance on %s has ended: %v", a.scene.Nodes[i].Name, a.processes[i].Wait())
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the appliances are not ready: %s", problem)
		case <-tick.C:
		}
	}
}

func (a *Appliance) problem(ctx context.Context, nodes []int) string {
	holder := ""
	for k, i := range nodes {
		s, err := a.Status(ctx, i)
		switch {
		case err != nil:
			return fmt.Sprintf("%s: %v", a.scene.Nodes[i].Name, err)
		case len(s.NotReady) > 0:
			return fmt.Sprintf("%s: %s", s.ID, strings.Join(s.NotReadyTexts(), "; "))
		case s.Holder == "":
			return fmt.Sprintf("%s knows of no holder", s.ID)
		case k > 0 && s.Holder != holder:
			return fmt.Sprintf("%s says that %s holds, another says %s", s.ID, s.Holder, holder)
		}
		holder = s.Holder
	}
	return ""
}

// Log is what the appliances have written, for the message of a failed test.
func (a *Appliance) Log() string {
	var b strings.Builder
	for i, n := range a.scene.Nodes {
		text, _ := os.ReadFile(a.log(i))
		for line := range strings.Lines(string(text)) {
			fmt.Fprintf(&b, "%s: %s", n.Name, line)
		}
	}
	return b.String()
}

func (a *Appliance) data(i int) string {
	return filepath.Join(a.scene.Dir, a.scene.Nodes[i].Name)
}
func (a *Appliance) socket(i int) string { return a.data(i) + ".sock" }
func (a *Appliance) log(i int) string    { return a.data(i) + ".log" }
