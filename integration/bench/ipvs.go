package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appliance/integration/vm"
)

// The forwarders that take a kernel with ip_vs.
const (
	applianceIPVS = "appliance ipvs"
	ipvsByHand    = "ipvsadm by hand"
)

// ipvsRows are what is measured of them: what a forwarder can change.
const ipvsRows = "conn64,conn1,rps64,rps1,down4,up4"

// A report is a survey on its way out of the virtual machine.
type report struct {
	Names   []string
	Rows    []string
	Figures map[string]map[string][]figure // by row and forwarder
	With    string                         // kernel and programs
	Load    string                         // of the machine, when it was done
}

// ipvsInVM measures data plane ipvs against the same services made with
// ipvsadm, in a virtual machine whose kernel has ip_vs, and writes a page about
// it. Absolute figures are those of an emulator and mean nothing; the ratios do.
func ipvsInVM(ctx context.Context, binary string, rounds int, length time.Duration, outDir string,
	out, progress io.Writer) (*survey, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	load := loadAverage()
	var text bytes.Buffer
	code, err := vm.Run(ctx, vm.Spec{
		Timeout: time.Hour, MemoryMiB: 2048, Stdout: &text, Stderr: progress,
	}, self, "-suite", "ipvs-guest", "-binary", binary, "-rounds", strconv.Itoa(rounds), "-for", length.String())
	switch {
	case err != nil:
		return nil, err
	case code != 0:
		return nil, fmt.Errorf("the benchmark in the machine ended with exit code %d", code)
	}
	var r report
	if err := json.Unmarshal(text.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("what the benchmark in the machine reports: %w", err)
	}
	s := &survey{names: r.Names, load: load, figures: map[[2]string][]figure{}}
	for _, row := range rows(length) {
		if !slices.Contains(r.Rows, row.name) {
			continue
		}
		s.rows = append(s.rows, row)
		for name, fs := range r.Figures[row.name] {
			s.figures[[2]string{row.name, name}] = fs
		}
	}
	var page bytes.Buffer
	s.ipvsPage(&page, r, rounds, length)
	if _, err := out.Write(page.Bytes()); err != nil {
		return nil, err
	}
	return s, writePage(outDir, "ipvs", page.Bytes(), s.svg())
}

// ipvsGuest is the part in the virtual machine. It writes a report.
func ipvsGuest(ctx context.Context, binary string, rounds int, length time.Duration, out, progress io.Writer) error {
	s, err := takeSurvey(ctx, binary, rounds, length, ipvsRows,
		strings.Join([]string{"no balancer", applianceIPVS, ipvsByHand}, ";"), progress)
	if err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	r := report{
		Names: s.names, Figures: map[string]map[string][]figure{}, Load: loadAverage(),
		With: fmt.Sprintf("Linux %s, ipvsadm %s, nftables %s", unix.ByteSliceToString(u.Release[:]),
			version(1, "ipvsadm", "--version"), version(1, "nft", "--version")),
	}
	for _, row := range s.rows {
		r.Rows = append(r.Rows, row.name)
		r.Figures[row.name] = map[string][]figure{}
		for _, name := range s.names {
			r.Figures[row.name][name] = s.figures[[2]string{row.name, name}]
		}
	}
	return json.NewEncoder(out).Encode(r)
}

// ipvsPage is the page about a survey that came out of the virtual machine.
func (s *survey) ipvsPage(w io.Writer, r report, rounds int, length time.Duration) {
	fmt.Fprintf(w, "# IPVS, measured\n\n`make bench-ipvs`, which `make bench-forward` ends with, has written "+
		"this page on %s: "+
		"client, forwarder and three servers in network namespaces of one virtual machine whose kernel has ip_vs. "+
		"%d rounds of %s each, all in turns; medians, ratios within a round, and the least and the most of them. "+
		"The machine is emulated: its figures are a fraction of a real one's, and only the ratios mean something.\n\n",
		time.Now().UTC().Format("2006-01-02"), rounds, length)
	fmt.Fprintf(w, "In the machine: 2 cores emulated by QEMU %s, %s; load average %s at the end. Around it: %s; load "+
		"average %s when it began.\n\n",
		version(3, "qemu-system-x86_64", "--version"), r.With, r.Load, host(), s.load)
	fmt.Fprintf(w, "*%s* is round robin over the three servers by `ipvsadm -A -s rr` and `-a -m`, "+
		"`net.ipv4.vs.conntrack=1` and one rule that masquerades. "+
		"*%s* is the same by `dataPlane: ipvs`, with its checks; CPU time is that of its process. *no balancer* is the "+
		"client at the servers themselves.\n", ipvsByHand, applianceIPVS)
	fmt.Fprintf(w, "\n![rates as parts of no balancer](ipvs.svg)\n")
	for _, row := range s.rows {
		unit, rate := row.words()
		if row.per == "GB" {
			rate = "%.2f" // emulation moves little
		}
		fmt.Fprintf(w, "\n## %s\n\n| forwarder | %s | of no balancer | of %s | "+latencyColumns+
			"CPU s per %s | errors |\n|---|---|---|---|---|---|---|---|---|\n", row.name, unit, ipvsByHand, row.per)
		for _, name := range s.names {
			fmt.Fprintf(w, "| %s | "+rate+" | %s | %s | %s %.2f | %.0f |\n", name, s.of(row.name, name, figure.rate),
				s.against(row.name, name, "no balancer"), s.against(row.name, name, ipvsByHand), s.latencies(row, name),
				s.of(row.name, name, func(f figure) float64 { return f.CPU }),
				s.of(row.name, name, func(f figure) float64 { return float64(f.Errors) }))
		}
	}
}

// compareIPVS tells the page about forwarding what the page about IPVS says.
func (s *survey) compareIPVS(w io.Writer) {
	if s.ipvs == nil {
		return
	}
	fmt.Fprintf(w, "\n## IPVS\n\nIn an emulated machine whose kernel has ip_vs, against the same services made with "+
		"ipvsadm; [more about it](ipvs.md).\n\n| | %s, of %s |\n|---|---|\n", applianceIPVS, ipvsByHand)
	for _, r := range s.ipvs.rows {
		fmt.Fprintf(w, "| %s | %.2f |\n", r.name, s.ipvs.ratio(r.name, applianceIPVS, ipvsByHand))
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
