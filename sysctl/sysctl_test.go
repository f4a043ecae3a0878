package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// tree makes a Tree with these values, as "key=value".
func tree(t *testing.T, values ...string) *Tree {
	t.Helper()
	tr := &Tree{Root: t.TempDir()}
	for _, v := range values {
		key, value, _ := strings.Cut(v, "=")
		if err := os.MkdirAll(filepath.Dir(tr.file(key)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(tr.file(key), []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// values lists every parameter of tr in order, as "key=value".
func values(t *testing.T, tr *Tree) (all []string) {
	t.Helper()
	err := filepath.WalkDir(tr.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		key, err := filepath.Rel(tr.Root, path)
		if err != nil {
			return err
		}
		value, err := tr.Read(key)
		all = append(all, key+"="+value)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func param(key, value string) Parameter { return Parameter{Key: key, Value: value, Why: "so it is"} }

func TestNames(t *testing.T) {
	for p, want := range map[Parameter]string{
		{Key: ipv4Forwarding, Value: "1"}: "net.ipv4.ip_forward = 1",
		// A dot in an interface's name is a slash for sysctl(8).
		{Key: "net/ipv6/conf/eth0.100/accept_ra", Value: "2"}: "net.ipv6.conf.eth0/100.accept_ra = 2",
	} {
		if got := p.Line(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSetAndRestore(t *testing.T) {
	both := Forwarding(true, true, "so it is")
	for _, tt := range []struct {
		name string
		have []string
		need []Parameter
		want []string // after Set; Restore leads back to have
	}{
		{
			name: "another value", have: []string{"a=0", "b=1"}, need: []Parameter{param("a", "1"), param("b", "1")},
			want: []string{"a=1", "b=1"},
		},
		{
			name: "forwarding by any value but 0", need: both,
			have: []string{ipv4Forwarding + "=2", ipv6Forwarding + "=1"},
			want: []string{ipv4Forwarding + "=2", ipv6Forwarding + "=1"},
		},
		{
			name: "accept_ra of interfaces that listen", need: Forwarding(false, true, "so it is"),
			have: []string{ipv6Forwarding + "=0",
				accept("eth0.7") + "=1", accept("eth1") + "=0", accept("eth2") + "=2"},
			want: []string{ipv6Forwarding + "=1",
				accept("eth0.7") + "=2", accept("eth1") + "=0", accept("eth2") + "=2"},
		},
		{
			name: "accept_ra of a host that forwarded before us", need: both,
			have: []string{ipv4Forwarding + "=0", ipv6Forwarding + "=1", accept("eth0") + "=1"},
			want: []string{ipv4Forwarding + "=1", ipv6Forwarding + "=1", accept("eth0") + "=1"},
		},
		{
			name: "IPv4 alone leaves accept_ra", need: Forwarding(true, false, "so it is"),
			have: []string{ipv4Forwarding + "=0", ipv6Forwarding + "=0", accept("eth0") + "=1"},
			want: []string{ipv4Forwarding + "=1", ipv6Forwarding + "=0", accept("eth0") + "=1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := tree(t, tt.have...)
			equal := func(when string, want []string) {
				t.Helper()
				if got := values(t, tr); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
					t.Errorf("after %s: %q, want %q", when, got, want)
				}
			}
			if err := tr.Check(tt.need...); err != nil {
				t.Error(err)
			}
			equal("Check", tt.have)
			for range 2 {
				if n, err := tr.Set(tt.need...); n != 0 || err != nil {
					t.Errorf("Set: repaired %d, %v", n, err)
				}
				equal("Set", tt.want)
			}
			if err := tr.Restore(); err != nil {
				t.Error(err)
			}
			equal("Restore", tt.have)
		})
	}
}

func accept(iface string) string { return "net/ipv6/conf/" + iface + "/accept_ra" }

// A kernel that begins to forward drops the default routes of router advertisements, unless it is told before to keep
// them. It has to be told so as long as it forwards.
func TestAcceptRAComesFirst(t *testing.T) {
	tr := tree(t, accept("eth0.7")+"=1", ipv6Forwarding+"=0")
	need := Forwarding(false, true, "so it is")
	if _, err := tr.Set(need...); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, p := range tr.changed {
		order = append(order, p.Name())
	}
	if want := []string{"net.ipv6.conf.eth0/7.accept_ra", "net.ipv6.conf.all.forwarding"}; !slices.Equal(order, want) {
		t.Errorf("set %q, want %q", order, want)
	}
	if err := tr.write(accept("eth0.7"), "1"); err != nil {
		t.Fatal(err)
	}
	if n, err := tr.Set(need...); n != 1 || err != nil {
		t.Errorf("after a foreign change: repaired %d, %v; want 1", n, err)
	}
	if got, _ := tr.Read(accept("eth0.7")); got != "2" {
		t.Errorf("accept_ra is %s, want 2", got)
	}
}

// What somebody turns back is set again and counted; the value from before the first Set is put back.
func TestRepair(t *testing.T) {
	tr := tree(t, "a=0", "b=0")
	if _, err := tr.Set(param("a", "1"), param("b", "1")); err != nil {
		t.Fatal(err)
	}
	if err := tr.write("a", "7"); err != nil {
		t.Fatal(err)
	}
	if n, err := tr.Set(param("a", "1"), param("b", "1")); n != 1 || err != nil {
		t.Errorf("repaired %d, %v; want 1", n, err)
	}
	if err := tr.RestoreFunc(func(key string) bool { return key == "a" }); err != nil {
		t.Error(err)
	}
	if got := values(t, tr); !slices.Equal(got, []string{"a=0", "b=1"}) {
		t.Errorf("after the restoration of one: %q", got)
	}
	tr.Root = filepath.Join(tr.Root, "gone") // as with an interface that is gone
	if err := tr.Restore(); err != nil {
		t.Error(err)
	}
}

// Usable of a data plane checks while another goroutine applies.
func TestCheckDuringSet(t *testing.T) {
	tr := tree(t, accept("eth0")+"=1", ipv6Forwarding+"=0")
	need := Forwarding(false, true, "so it is")
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100 {
			if err := tr.Check(need...); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 100 {
		if _, err := tr.Set(need...); err != nil {
			t.Error(err)
		}
		if err := tr.Restore(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func TestErrorsNameTheRemedy(t *testing.T) {
	of := param("net/ipv4/vs/conntrack", "1")
	of.Module, of.Otherwise = "ip_vs", "take a kernel with CONFIG_IP_VS_NFCT"
	absent := []string{"the kernel has no net.ipv4.vs.conntrack", "so it is", of.Otherwise}
	refused := func(p Parameter) error { return lacking{p, "0"}.refused(os.ErrPermission) }
	failed := tree(t)
	failed.changed = []Parameter{{Key: "a\x00", Value: "1"}}
	for _, tt := range []struct {
		name string
		err  error
		want []string
	}{
		{"cannot be set", refused(param(ipv4Forwarding, "1")), []string{"net.ipv4.ip_forward is 0", "so it is",
			`the line "net.ipv4.ip_forward = 1" into /etc/sysctl.d/90-appliance.conf, and run sysctl --system`}},
		{"of a module", refused(of), []string{
			`the line "net.ipv4.vs.conntrack = 1" into /etc/sysctl.d/90-appliance.conf`,
			`the line "ip_vs" into /etc/modules-load.d/appliance.conf`, "run sysctl --system",
		}},
		{"missing", tree(t).Check(of), absent},
		{"missing on Set", second(tree(t).Set(of)), absent},
		{"no IPv6", tree(t).Check(Forwarding(false, true, "")...), []string{"ipv6.disable=1"}},
		{"all of them", tree(t).Check(param("a", "1"), param("b", "1")), []string{"parameter a", "parameter b"}},
		{"restore", failed.Restore(), []string{"put a", "back to 1", "run sysctl -w"}},
	} {
		for _, want := range tt.want {
			if tt.err == nil || !strings.Contains(tt.err.Error(), want) {
				t.Errorf("%s: no %q in %v", tt.name, want, tt.err)
			}
		}
	}
	if err := refused(of); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v has lost its cause", err)
	}
}

func second(_ int, err error) error { return err }

func ExampleTree() {
	root, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	t := Tree{Root: root} // the zero Tree is /proc/sys
	fmt.Println(os.MkdirAll(filepath.Join(root, "net/ipv4"), 0o755), t.write("net/ipv4/ip_forward", "0"))

	need := Forwarding(true, false, "backends on other hosts need it")
	_, err = t.Set(need...)
	value, _ := t.Read("net/ipv4/ip_forward")
	fmt.Println(need[0].Line(), "is", value, err)

	err = t.Restore()
	value, _ = t.Read("net/ipv4/ip_forward")
	fmt.Println("it was", value, err)
	// Output:
	// <nil> <nil>
	// net.ipv4.ip_forward = 1 is 1 <nil>
	// it was 0 <nil>
}
