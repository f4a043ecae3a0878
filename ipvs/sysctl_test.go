package ipvs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes a directory with settings, as "key=value".
func tree(t *testing.T, settings ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		file := filepath.Join(root, key)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func content(t *testing.T, root, key string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, key))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestSysctls(t *testing.T) {
	const track, expire, forward = "net/ipv4/vs/conntrack", "net/ipv4/vs/expire_nodest_conn", "net/ipv4/ip_forward"
	root := tree(t, track+"=0", expire+"=1", forward+"=0")
	s := sysctls{root: root}
	need := settings(true, false, false, nil)
	if err := s.check(need); err != nil {
		t.Errorf("check: %v", err)
	}
	if content(t, root, track) != "0" {
		t.Error("check has written")
	}
	if n, err := s.set(need); n != 0 || err != nil {
		t.Errorf("set: %d repaired, %v", n, err)
	}
	for _, key := range []string{track, expire, forward} {
		if content(t, root, key) != "1" {
			t.Errorf("%s is not set", key)
		}
	}
	// Somebody turns one back; what we found first is what is put back.
	if err := s.write(forward, "0"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.set(need); n != 1 || err != nil {
		t.Errorf("after a foreign change: %d repaired, %v; want 1", n, err)
	}
	if err := s.restore(); err != nil {
		t.Error(err)
	}
	if content(t, root, track) != "0" || content(t, root, forward) != "0" {
		t.Error("restore left a setting of ours")
	}
	if content(t, root, expire) != "1" {
		t.Error("restore changed a setting that was not ours")
	}
}

func TestSysctlMissing(t *testing.T) {
	s := sysctls{root: tree(t, "net/ipv4/ip_forward=1")}
	err := s.check(settings(true, false, false, nil))
	if err == nil || !strings.Contains(err.Error(), "CONFIG_IP_VS_NFCT") {
		t.Errorf("got %v, want the kernel's option", err)
	}
}

// A kernel that forwards throws away the default route of router
// advertisements, unless it is told to keep it first.
func TestSettingsKeepAdvertisedRoutes(t *testing.T) {
	routes := strings.Join([]string{
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003 eth0.7",
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003 eth1",
		"fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00040001 eth2",
		"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200 lo",
	}, "\n")
	on := advertised([]byte(routes))
	if !slices.Equal(on, []string{"eth0.7"}) {
		t.Fatalf("advertised default routes on %q, want eth0.7", on)
	}
	root := tree(t, "net/ipv4/vs/conntrack=1", "net/ipv4/vs/expire_nodest_conn=1",
		"net/ipv6/conf/eth0.7/accept_ra=1", "net/ipv6/conf/all/forwarding=0")
	s := sysctls{root: root}
	if _, err := s.set(settings(false, true, false, on)); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, f := range s.found {
		order = append(order, f.dotted())
	}
	if want := []string{"net.ipv6.conf.eth0/7.accept_ra", "net.ipv6.conf.all.forwarding"}; !slices.Equal(order, want) {
		t.Errorf("set %q, want %q", order, want)
	}
	if got := content(t, root, "net/ipv6/conf/eth0.7/accept_ra"); got != "2" {
		t.Errorf("accept_ra is %s, want 2", got)
	}
}

func TestRefusedTellsTheLine(t *testing.T) {
	err := refused(setting{"net/ipv4/vs/conntrack", "1", "so"}, "0", os.ErrPermission)
	for _, want := range []string{`"net.ipv4.vs.conntrack = 1"`, "/etc/sysctl.d/90-appliance.conf", "/etc/modules-load.d/appliance.conf", "sysctl --system"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %s in %v", want, err)
		}
	}
}
