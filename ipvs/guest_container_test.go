package ipvs_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"appliance/balancer"
	"appliance/ipvs"
	"appliance/nft"
)

// contained tells the test binary that it runs in the container below.
const contained = "APPLIANCE_IPVS_CONTAINED"

// container is what a runtime makes of a pod without "privileged": /proc/sys is read-only, NET_ADMIN is the only
// capability that counts here, and no program can gain more. /proc/sys/net of the host is mounted elsewhere.
const container = `mkdir -p /run/host/proc/sys/net &&
mount --bind /proc/sys/net /run/host/proc/sys/net &&
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&
exec setpriv --no-new-privs --bounding-set -all,+net_admin,+net_raw --inh-caps -all,+net_admin,+net_raw "$@"`

func testContainer(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", "node", "unshare", "--mount",
		"sh", "-c", container, "sh", self, "-test.run=^TestContained$", "-test.v")
	cmd.Env = append(os.Environ(), contained+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestContained") {
		t.Errorf("in the container: %v\n%s", err, out)
	}
}

// TestContained runs a plane in the container from New to Close.
func TestContained(t *testing.T) {
	if os.Getenv(contained) == "" {
		t.Skip("takes the container that TestGuest makes")
	}
	lb := balancer.LoadBalancer{
		Name: "api", Scheduler: "sed",
		Frontends: []netip.AddrPort{netip.AddrPortFrom(vip(false), 443), netip.AddrPortFrom(vip(true), 443)},
		Backends:  append(all(false), all(true)...),
	}
	forward := func() string {
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	before := forward()
	without, err := ipvs.New(ipvs.Config{Masquerader: &nft.IPVSMasquerade{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := without.Usable(context.Background(), lb); err == nil || !strings.Contains(err.Error(), "/etc/sysctl.d/") {
		t.Errorf("with /proc/sys alone: got %v, want the lines for /etc/sysctl.d", err)
	}

	p, err := ipvs.New(ipvs.Config{
		Masquerader: &nft.IPVSMasquerade{}, Refuser: &nft.Rejecter{}, Sysctls: "/run/host/proc/sys",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Usable(context.Background(), lb); err != nil {
		t.Error(err)
	}
	services := []balancer.Service{service(false, 443, "sed", all(false)...), service(true, 443, "sed", all(true)...)}
	if _, err := p.Apply(context.Background(), services); err != nil {
		t.Error(err)
	}
	if got := forward(); got != "1" {
		t.Errorf("ip_forward is %s", got)
	}
	if stats, err := p.Stats(); err != nil || len(stats) != 2 {
		t.Errorf("got %+v, %v", stats, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if got := forward(); got != before {
		t.Errorf("after Close, ip_forward is %s, and was %s", got, before)
	}
}
