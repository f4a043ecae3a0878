package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
	"appliance/status"
)

// TestRepairs damages what the appliance has put into the kernel, and takes
// its backends away, in every data plane.
func TestRepairs(t *testing.T) {
	for _, plane := range planes() {
		for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
			t.Run(fmt.Sprintf("%s/%s", plane, family), func(t *testing.T) {
				t.Parallel() // most of it is waiting
				lb := balances(plane)[0]
				lb.check = asked
				w := newWorld(t, family)
				doctors := w.doctors(t, lb.nodes...)
				w.start(t, string(plane), []balance{lb})
				w.resolve(t)
				for i := range w.apps {
					if i != worker || plane != balancer.Direct {
						w.await(t, i, lb.name, served(plane, len(lb.nodes)))
					}
				}
				w.reached(t, w.client, lb)
				holder := w.holder(t)
				w.withstands(t, plane, lb, holder, others(holder)[0])
				w.oneAnswer(t)
				if plane != balancer.Direct {
					t.Run("a backend's host is lost", func(t *testing.T) { w.losesHost(t, holder, lb) })
				}
				t.Run("no backend", func(t *testing.T) { w.refuses(t, lb, plane, doctors) })
				w.oneAnswer(t)
			})
		}
	}
}

// withstands damages the given nodes in every way.
func (w *world) withstands(t *testing.T, plane balancer.PlaneName, lb balance, nodes ...int) {
	for _, i := range nodes {
		damages := w.damages(t, i, plane)
		if w.ownsTables(t, i) {
			t.Run("nobody else changes tables, on "+w.nodes[i].Name, func(t *testing.T) { w.keepsTables(t, i, lb, damages) })
			damages = slices.DeleteFunc(damages, func(d damage) bool { return d.command[0] == "nft" })
		}
		for _, d := range damages {
			t.Run(fmt.Sprintf("%s, on %s", d.name, w.nodes[i].Name), func(t *testing.T) {
				w.repairs(t, i, lb, d)
			})
		}
		if plane == balancer.UserSpace || w.ownsTables(t, i) && plane != balancer.IPVS {
			continue
		}
		told := tellings(t, w.apps[i].log(), "had been damaged")
		if len(told) == 0 {
			t.Errorf("%s has not told that its data plane was damaged", w.nodes[i].Name)
		}
		// A burst of repairs is told at its start, and as a sum when it has been quiet
		// for a minute. The next burst may begin at any time after that: on a slow
		// machine, between two damages. So one gap may be short, but never the first,
		// and never two that follow each other.
		short := true
		for k := 1; k < len(told); k++ {
			apart := told[k].Sub(told[k-1])
			if apart >= time.Minute-time.Second {
				short = false
				continue
			}
			if short {
				t.Errorf("%s has told twice within %v that its data plane was damaged", w.nodes[i].Name, apart)
			}
			short = true
		}
	}
}

// ownsTables says whether the kernel of a node lets its appliance own tables (Linux 6.9).
func (w *world) ownsTables(t *testing.T, i int) bool {
	tables := strings.Split(w.shell(t, i, "nft", "list", "tables"), "\n")
	ours := slices.IndexFunc(tables, func(line string) bool { return strings.Contains(line, "appliance_") })
	if ours < 0 {
		t.Fatalf("%s has no table of the appliance: %v", w.nodes[i].Name, tables)
	}
	out, err := w.attempt(t, i, append([]string{"nft", "-c", "delete"}, strings.Fields(tables[ours])...)...)
	if err != nil && !strings.Contains(out, "not permitted") {
		t.Fatalf("asking for the owner of a table: %v: %s", err, out)
	}
	return err != nil
}

// keepsTables tries the damages by nft: nothing happens to rules and open connections.
func (w *world) keepsTables(t *testing.T, i int, lb balance, damages []damage) {
	before := repaired(w.ready(t, i))
	c, _, err := dial(t.Context(), w.client, w.target(lb.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, d := range damages {
		if d.command[0] != "nft" {
			continue
		}
		if out, err := w.attempt(t, i, d.command...); err != nil && !strings.Contains(out, "not permitted") {
			t.Fatalf("%s: %v: %s", d.name, err, out)
		}
		if d.gone(t) {
			t.Errorf("%s: a table is gone", d.name)
		}
		w.reached(t, w.client, lb)
	}
	if after := repaired(w.ready(t, i)); after != before {
		t.Errorf("%d repairs, want none", after-before)
	}
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an open connection: %v, want it still open", err)
	}
}

// tellings are the times of the log lines that contain the text.
func tellings(t *testing.T, log, text string) (at []time.Time) {
	t.Helper()
	for line := range strings.Lines(log) {
		if !strings.Contains(line, text) {
			continue
		}
		_, rest, _ := strings.Cut(line, "time=")
		stamp, _, _ := strings.Cut(rest, " ")
		when, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil {
			t.Fatalf("a line of the log without its time: %s", line)
		}
		at = append(at, when)
	}
	return at
}

// A damage is what somebody else does to the kernel of a node.
type damage struct {
	name    string
	command []string
	// gone is whether it is still there to see.
	gone func(t *testing.T) bool
	// everything says that foreign rules go, too.
	everything bool
}

// damages are those that affect a plane.
func (w *world) damages(t *testing.T, i int, plane balancer.PlaneName) []damage {
	t.Helper()
	tables := w.shell(t, i, "nft", "list", "tables")
	all := []damage{{
		name:       "nft flush ruleset",
		command:    []string{"nft", "flush", "ruleset"},
		everything: true,
		gone: func(t *testing.T) bool {
			have := w.shell(t, i, "nft", "list", "tables")
			return slices.ContainsFunc(slices.Collect(strings.Lines(tables)),
				func(line string) bool { return !strings.Contains(have, line) })
		},
	}}
	for line := range strings.Lines(tables) {
		name := strings.TrimSpace(line)
		if !strings.Contains(name, "appliance_") {
			continue
		}
		all = append(all, damage{
			name:    "delete " + name,
			command: append([]string{"nft", "delete"}, strings.Fields(name)...),
			gone:    func(t *testing.T) bool { return !strings.Contains(w.shell(t, i, "nft", "list", "tables"), line) },
		})
	}
	vip := w.vip().String()
	all = append(all, damage{
		name:    "ip addr del",
		command: []string{"ip", "addr", "del", w.vip().String() + "/" + fmt.Sprint(w.vip().BitLen()), "dev", "lo"},
		gone: func(t *testing.T) bool {
			return !strings.Contains(w.shell(t, i, "ip", "addr", "show", "dev", "lo"), vip+"/")
		},
	})
	if plane == balancer.IPVS {
		services := func(t *testing.T) bool { return !strings.Contains(w.shell(t, i, "ipvsadm", "-Ln"), vip) }
		all = append(all,
			damage{name: "ipvsadm -C", command: []string{"ipvsadm", "-C"}, gone: services, everything: true},
			damage{name: "ipvsadm -D", command: []string{"ipvsadm", "-D", "-t", w.target(scene.Port).String()}, gone: services},
		)
	}
	return all
}

// foreign is what others have in the kernel, as they would list it.
const foreign = `table inet theirs {
	chain input {
		type filter hook input priority filter; policy accept;
		tcp dport 1 drop
	}
}
`

// repairs damages a node and waits until all is whole again.
func (w *world) repairs(t *testing.T, i int, lb balance, d damage) {
	t.Helper()
	isIPVS := strings.HasPrefix(d.name, "ipvsadm")
	w.shell(t, i, "nft", foreign)
	theirs := func() string {
		text := w.shell(t, i, "nft", "list", "table", "inet", "theirs")
		if isIPVS {
			text += w.shell(t, i, "sh", "-c", "ipvsadm -Ln | grep -A 1 192.0.2.1:99")
		}
		return text
	}
	if isIPVS {
		w.shell(t, i, "sh", "-c", "ipvsadm -A -t 192.0.2.1:99 -s lc && ipvsadm -a -t 192.0.2.1:99 -r 192.0.2.2:99 -m -w 7")
		defer w.shell(t, i, "sh", "-c", "ipvsadm -D -t 192.0.2.1:99 || true")
	}
	before, had := w.ready(t, i), theirs()
	at := time.Now()
	w.shell(t, i, d.command...)
	eventually(t, func() error {
		if d.gone(t) {
			return errors.New("it is still gone")
		}
		return nil
	})
	t.Logf("it was back after %v", time.Since(at).Round(time.Millisecond))
	if !d.everything {
		if have := theirs(); have != had {
			t.Errorf("what others had there was\n%s\nand is\n%s", had, have)
		}
	}
	eventually(t, func() error {
		if after := repaired(w.ready(t, i)); after <= repaired(before) {
			return fmt.Errorf("status counts %d repairs, as many as before", after)
		}
		return nil
	})
	w.reached(t, w.client, lb)
	w.reached(t, w.far, lb)
}

// repaired is what a node says to have put back.
func repaired(s status.Snapshot) int {
	n := 0
	for _, lb := range s.LoadBalancers {
		n += lb.Repairs
	}
	for _, vip := range s.VIPs {
		n += int(vip.Repairs)
	}
	return n
}

// shell runs a command in a node. One that is a ruleset goes to nft.
func (w *world) shell(t *testing.T, i int, command ...string) string {
	t.Helper()
	return shell(t, w.nodes[i], command...)
}

func shell(t *testing.T, m *lab.Machine, command ...string) string {
	t.Helper()
	out, err := attempt(t, m, command...)
	if err != nil {
		t.Fatalf("%v on %s: %v: %s", command, m.Name, err, out)
	}
	return out
}

// attempt is shell for a command that may fail.
func (w *world) attempt(t *testing.T, i int, command ...string) (string, error) {
	t.Helper()
	return attempt(t, w.nodes[i], command...)
}

func attempt(t *testing.T, m *lab.Machine, command ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	if command[0] == "nft" && len(command) == 2 {
		cmd = exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(command[1])
	}
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := m.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait()
	return out.String(), err
}

// losesHost unplugs a backend's host. A client that waits for it must be reset as soon as
// the checks have failed.
func (w *world) losesHost(t *testing.T, holder int, lb balance) {
	for where, from := range map[string]*lab.Machine{"on the link": w.client, "on the holder": w.nodes[holder]} {
		conn, a, err := dial(t.Context(), from, w.target(lb.port))
		for err == nil && a.Server != "s1" {
			conn.Close()
			conn, a, err = dial(t.Context(), from, w.target(lb.port))
		}
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ended := make(chan time.Time, 1)
		go func() {
			conn.SetReadDeadline(time.Now().Add(patience))
			if _, err = conn.Read(make([]byte, 1)); errors.Is(err, syscall.ECONNRESET) {
				err = nil
			}
			ended <- time.Now()
		}()
		if err := w.s1.Unplug(); err != nil {
			t.Fatal(err)
		}
		w.await(t, holder, lb.name, func(s balancer.LoadBalancerStatus) bool { return s.Backends[1].State == balancer.Down })
		down := time.Now()
		at := <-ended
		if err != nil {
			t.Errorf("a silent client %s of a server whose host is lost: %v, want a reset", where, err)
		}
		t.Logf("a client %s heard of it %v after the checks had", where, at.Sub(down).Round(time.Millisecond))
		if err := w.s1.Plug(); err != nil {
			t.Fatal(err)
		}
		for i := range w.apps {
			w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool { return s.Backends[1].State == balancer.Up })
		}
	}
}

// refuses takes all backends away: clients are refused, and do not wait.
func (w *world) refuses(t *testing.T, lb balance, plane balancer.PlaneName, doctors []*doctor) {
	for _, d := range doctors {
		d.say(http.StatusServiceUnavailable)
	}
	for i := range w.apps {
		w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool {
			for _, b := range s.Backends {
				if b.State != balancer.Down {
					return false
				}
			}
			return true
		})
	}
	for _, from := range append([]*lab.Machine{w.client, w.far}, w.nodes...) {
		eventually(t, func() error {
			at := time.Now()
			c, err := from.Dial(t.Context(), w.target(lb.port))
			if err == nil {
				// A server may have taken it before its node had the rules: then the next one is refused.
				c.SetReadDeadline(at.Add(2 * time.Second))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			// Where user space listens, the kernel has accepted already.
			accepted := plane == balancer.UserSpace && errors.Is(err, syscall.ECONNRESET)
			switch took := time.Since(at); {
			case !errors.Is(err, syscall.ECONNREFUSED) && !accepted:
				return fmt.Errorf("from %s: %w", from.Name, err)
			case took > time.Second: // a SYN is sent again after 1 s
				return fmt.Errorf("from %s: refused after %v", from.Name, took)
			}
			return nil
		})
	}
	for _, d := range doctors {
		d.say(http.StatusOK)
	}
	w.reached(t, w.client, lb)
}
