package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"appliance/integration/vm"
)

// The forwarders that take a kernel with ip_vs.
const (
	applianceIPVS = "appliance ipvs"
	ipvsByHand    = "ipvsadm by hand"
)

// ipvsInVM measures data plane ipvs against the same services made with
// ipvsadm, in a virtual machine whose kernel has ip_vs. Its absolute figures
// are those of an emulator and mean nothing; the ratios do.
func ipvsInVM(ctx context.Context, binary string, rounds int, length time.Duration, outDir string, out, progress io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(io.MultiWriter(out, &text), "# %s against %s, in an emulated machine\n\n", applianceIPVS, ipvsByHand)
	code, err := vm.Run(ctx, vm.Options{
		Timeout: time.Hour, MemoryMiB: 2048, Stdout: io.MultiWriter(out, &text), Stderr: progress,
	}, self, "-suite", "forward", "-binary", binary, "-out", "",
		"-rounds", strconv.Itoa(rounds), "-for", length.String(),
		"-only", "conn64,rps64,down4", "-through", strings.Join([]string{"no balancer", applianceIPVS, ipvsByHand}, ";"))
	switch {
	case err != nil:
		return err
	case code != 0:
		return fmt.Errorf("the benchmark in the machine ended with exit code %d", code)
	case outDir == "":
		return nil
	}
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(outDir, "ipvs.md"), []byte(text.String()), 0o644)
}

// compareIPVS writes what the appliance's services are of those made by hand.
func (s *survey) compareIPVS(w io.Writer) {
	if !s.has(applianceIPVS) || !s.has(ipvsByHand) {
		return
	}
	fmt.Fprintln(w)
	for _, r := range s.rows {
		fmt.Fprintf(w, "%s: %s is %.2f of %s.\n", r.name, applianceIPVS, s.ratio(r.name, applianceIPVS, ipvsByHand), ipvsByHand)
	}
}

// ipvsadm is what one would write by hand: the same services, without checks.
func (f *field) ipvsadm(w *forwarder) error {
	n, err := f.machine(w)
	if err != nil {
		return err
	}
	vip := address(n + 60)
	to := netip.AddrPortFrom(vip, serverPort)
	w.to = []netip.AddrPort{to}
	if err := f.client.Route(netip.PrefixFrom(vip, 32), address(n)); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "ip addr add %s/32 dev lo scope host\nipvsadm -A -t %s -s rr\n", vip, to)
	for _, s := range f.backends() {
		fmt.Fprintf(&b, "ipvsadm -a -t %s -r %s -m\n", to, s)
	}
	// Masquerading needs conntrack to know what IPVS does. The kernel loads
	// nf_tables for the first who asks, who fails at times.
	fmt.Fprintf(&b, `for i in 1 2 3 4 5; do nft list tables && break; sleep 1; done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv4/vs/conntrack
nft -f - <<end
table ip lab {
  chain post {
    type nat hook postrouting priority srcnat;
    tcp dport %d ip daddr != %s masquerade
  }
}
end
`, serverPort, vip)
	return w.node.Do(func() error {
		if out, err := exec.Command("sh", "-ec", b.String()).CombinedOutput(); err != nil {
			return fmt.Errorf("ipvsadm: %w\n%s", err, out)
		}
		return nil
	})
}
