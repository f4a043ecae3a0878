package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newLab(t *testing.T) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	l, err := New(Layout{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func prefixes(addrs ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}

func node(t *testing.T, l *Lab, name string, addrs ...string) *Machine {
	t.Helper()
	n, err := l.Machine(name, prefixes(addrs...)...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// reaches tells whether a new connection from n to addr opens soon.
func reaches(t *testing.T, n *Machine, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	c, err := n.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = Ask(c, "who")
	return err
}

// eventually waits for want, since a link that comes up takes its time.
func eventually(t *testing.T, what string, want func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = want(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		a, b []string
	}{
		"IPv4": {[]string{"10.77.0.11/24"}, []string{"10.77.0.12/24"}},
		"IPv6": {[]string{"fd77::11/64"}, []string{"fd77::12/64"}},
		"dual": {[]string{"10.77.0.11/24", "fd77::11/64"}, []string{"10.77.0.12/24", "fd77::12/64"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, b := node(t, l, "a", c.a...), node(t, l, "b", c.b...)
			var ss Servers
			defer ss.Close()
			for _, p := range c.b {
				addr := netip.AddrPortFrom(netip.MustParsePrefix(p).Addr(), 6443)
				if _, err := ss.Serve(b, "b", addr, nil); err != nil {
					t.Fatalf("addresses must be usable at once: %v", err)
				}
				if err := reaches(t, a, addr); err != nil {
					t.Error(err)
				}
			}
			// A server on every address is reached by every family.
			anywhere := netip.AddrPortFrom(netip.IPv6Unspecified(), 8443)
			if name == "IPv4" {
				anywhere = netip.AddrPortFrom(netip.IPv4Unspecified(), 8443)
			}
			if _, err := ss.Serve(b, "anywhere", anywhere, nil); err != nil {
				t.Fatal(err)
			}
			for _, p := range c.b {
				if err := reaches(t, a, netip.AddrPortFrom(netip.MustParsePrefix(p).Addr(), 8443)); err != nil {
					t.Error(err)
				}
			}
			is4, is6 := families(t, a)
			if want := name != "IPv6"; is4 != want {
				t.Errorf("the machine has IPv4 addresses: %v, want %v", is4, want)
			}
			if want := name != "IPv4"; is6 != want {
				t.Errorf("the machine has IPv6 addresses: %v, want %v", is6, want)
			}
		})
	}
}

// families tells which addresses a machine has on any interface.
func families(t *testing.T, n *Machine) (is4, is6 bool) {
	t.Helper()
	err := n.Do(func() error {
		all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range all {
			if a.IP.To4() != nil {
				is4 = true
			} else {
				is6 = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return is4, is6
}

func TestRouter(t *testing.T) {
	l := newLab(t)
	server := node(t, l, "server", "10.77.0.11/24", "fd77::11/64")
	router, err := l.Router("router", prefixes("10.77.0.1/24", "fd77::1/64"), prefixes("10.78.0.1/24", "fd78::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := l.FarMachine("client", router, prefixes("10.78.0.5/24", "fd78::5/64")...)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]string{{"10.78.0.0/24", "10.77.0.1"}, {"fd78::/64", "fd77::1"}} {
		if err := server.Route(netip.MustParsePrefix(r[0]), netip.MustParseAddr(r[1])); err != nil {
			t.Fatal(err)
		}
	}
	var ss Servers
	defer ss.Close()
	for _, is4 := range []bool{true, false} {
		addr := netip.AddrPortFrom(server.Addr(is4), 6443)
		if _, err := ss.Serve(server, "server", addr, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the routed client reaches the server", func() error {
			c, err := client.Dial(within(t, time.Second), addr)
			if err != nil {
				return err
			}
			defer c.Close()
			a, err := Ask(c, "who")
			if err == nil && a.Client.Addr() != client.Addr(is4) {
				t.Errorf("the server sees %s, want the client's own %s", a.Client, client.Addr(is4))
			}
			return err
		})
	}
}

func TestFaults(t *testing.T) {
	l := newLab(t)
	a := node(t, l, "a", "10.77.0.11/24", "fd77::11/64")
	b := node(t, l, "b", "10.77.0.12/24", "fd77::12/64")
	c := node(t, l, "c", "10.77.0.13/24", "fd77::13/64")
	var ss Servers
	defer ss.Close()
	at := map[*Machine][]netip.AddrPort{}
	for _, n := range []*Machine{a, b, c} {
		for _, is4 := range []bool{true, false} {
			addr := netip.AddrPortFrom(n.Addr(is4), 6443)
			if _, err := ss.Serve(n, n.Name, addr, nil); err != nil {
				t.Fatal(err)
			}
			at[n] = append(at[n], addr)
		}
	}
	expect := func(t *testing.T, from, to *Machine, want bool) {
		t.Helper()
		for _, addr := range at[to] {
			if want {
				eventually(t, from.Name+" reaches "+to.Name, func() error { return reaches(t, from, addr) })
			} else if reaches(t, from, addr) == nil {
				t.Errorf("%s reaches %s", from.Name, addr)
			}
		}
	}
	all := func(t *testing.T) {
		t.Helper()
		for _, from := range []*Machine{a, b, c} {
			for _, to := range []*Machine{a, b, c} {
				expect(t, from, to, true)
			}
		}
	}
	all(t)

	for name, f := range map[string]struct{ do, undo func() error }{
		"cut":      {func() error { return l.Cut(a, b) }, l.Heal},
		"link":     {a.LinkDown, a.LinkUp},
		"cable":    {a.Unplug, a.Plug},
		"one way":  {func() error { return a.CutFrom(b) }, l.Heal},
		"both cut": {func() error { return l.Cut(a, b, c) }, l.Heal},
	} {
		t.Run(name, func(t *testing.T) {
			if err := f.do(); err != nil {
				t.Fatal(err)
			}
			expect(t, a, b, false)
			expect(t, b, a, false)
			expect(t, b, c, true)
			expect(t, a, c, strings.Contains("cut, one way", name))
			if err := f.undo(); err != nil {
				t.Fatal(err)
			}
			all(t)
		})
	}
}

func TestCarrier(t *testing.T) {
	l := newLab(t)
	a := node(t, l, "a", "10.77.0.11/24")
	up := func() bool {
		var flags net.Flags
		if err := a.Do(func() error {
			ifi, err := net.InterfaceByName("eth0")
			if err == nil {
				flags = ifi.Flags
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if flags&net.FlagUp == 0 {
			t.Fatal("the interface must stay up when its cable is pulled")
		}
		return flags&net.FlagRunning != 0
	}
	is := func(want bool) func() error {
		return func() error {
			if up() != want {
				return fmt.Errorf("carrier is %v", !want)
			}
			return nil
		}
	}
	eventually(t, "carrier", is(true))
	if err := a.Unplug(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no carrier", is(false))
	if err := a.Plug(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "carrier again", is(true))
}

func TestProcess(t *testing.T) {
	l := newLab(t)
	a := node(t, l, "a", "10.77.0.11/24")
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	p, err := a.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink(a.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("the process ran in %s, want %s", got, want)
	}
	if host, _ := os.Readlink("/proc/self/ns/net"); host == want {
		t.Error("the machine is the host")
	}

	// Close kills what is left, with its children.
	cmd = exec.Command("sh", "-c", "sleep 1000 & echo $!; wait")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err = a.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if _, err := fmt.Fscan(pipe, &child); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v, want SIGKILL", err)
	}
	eventually(t, "the child is dead", func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if errors.Is(err, os.ErrNotExist) || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		return fmt.Errorf("%s %w", stat, err)
	})
	if _, err := a.Start(exec.Command("true")); !errors.Is(err, errClosed) {
		t.Errorf("start after Close: %v, want %v", err, errClosed)
	}
}

// TestCrash kills a process that holds a lab, and looks for what stays.
func TestCrash(t *testing.T) {
	if os.Getenv("LAB_CRASH") != "" {
		l, err := New(Layout{})
		if err != nil {
			t.Fatal(err)
		}
		n := node(t, l, "a", "10.77.0.11/24")
		p, err := n.Start(exec.Command("sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("child %d\n", p.Cmd.Process.Pid)
		select {}
	}
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrash$")
	cmd.Env = append(os.Environ(), "LAB_CRASH=1")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var child int
	_, err = fmt.Fscanf(pipe, "child %d\n", &child)
	cmd.Process.Kill()
	rest, _ := io.ReadAll(pipe)
	cmd.Wait()
	if err != nil {
		t.Fatalf("%v, %s", err, rest)
	}
	eventually(t, "the process of a crashed lab is dead", func() error {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child))
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		return fmt.Errorf("%d is still there: %s", child, comm)
	})
}

// TestCloseLeavesNothing compares what this process and the host's namespace
// have before and after a lab in which everything was used.
func TestCloseLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	links := func() []string {
		var names []string
		all, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			names = append(names, i.Name)
		}
		return names
	}
	namespaces := func() []string {
		var found []string
		for _, pattern := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
			paths, _ := filepath.Glob(pattern)
			for _, p := range paths {
				if to, _ := os.Readlink(p); strings.HasPrefix(to, "net:") && !slices.Contains(found, to) {
					found = append(found, to)
				}
			}
		}
		return found
	}
	linksBefore, before := links(), namespaces()

	l, err := New(Layout{})
	if err != nil {
		t.Fatal(err)
	}
	a := node(t, l, "a", "10.77.0.11/24")
	b := node(t, l, "b", "10.77.0.12/24")
	if _, err := l.Machine("a"); err == nil {
		t.Error("two machines of one name were made")
	}
	if _, err := b.Start(exec.Command("sleep", "1000")); err != nil {
		t.Fatal(err)
	}
	if err := l.Cut(a, b); err != nil {
		t.Fatal(err)
	}
	if len(namespaces()) != len(before)+3 {
		t.Errorf("two machines and the bridges make %d namespaces, want 3", len(namespaces())-len(before))
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel ends a thread a moment after its goroutine.
	eventually(t, "the namespaces are gone", func() error {
		if after := namespaces(); !slices.Equal(after, before) {
			return fmt.Errorf("%v, want %v", after, before)
		}
		return nil
	})
	if after := links(); !slices.Equal(after, linksBefore) {
		t.Errorf("links %v, want %v", after, linksBefore)
	}
	if _, err := l.Machine("c", prefixes("10.77.0.13/24")...); !errors.Is(err, errClosed) {
		t.Errorf("a machine after Close: %v, want %v", err, errClosed)
	}
	if err := a.Do(func() error { return nil }); !errors.Is(err, errClosed) {
		t.Errorf("Do after Close: %v, want %v", err, errClosed)
	}
}

// TestMachineFails builds a machine that cannot be, and closes what was built.
func TestMachineFails(t *testing.T) {
	l := newLab(t)
	if _, err := l.Machine("bad", prefixes("10.77.0.11/24", "ff02::1/64")...); err == nil {
		t.Error("a machine with a multicast address was made")
	}
	node(t, l, "bad", "10.77.0.11/24")
}

func TestDoSurvivesGoexit(t *testing.T) {
	l := newLab(t)
	a := node(t, l, "a", "10.77.0.11/24")
	done := make(chan error)
	go func() {
		done <- a.Do(func() error { runtime.Goexit(); return nil })
	}()
	if err := <-done; err == nil {
		t.Error("a function that ended its goroutine is reported as fine")
	}
	if err := a.Do(func() error { return nil }); err != nil {
		t.Error(err)
	}
}
