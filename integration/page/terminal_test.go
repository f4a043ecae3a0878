package page

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"appliance/status"
)

// TestTerminal kills a holder and looks for the cause of the failover: on the disk of the
// dead node, through the new holder's socket, and in its metrics.
func TestTerminal(t *testing.T) {
	g := serve(t, "")
	g.Ask(t.Context())
	holder, err := g.AwaitHolder(patient(t), func(int) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	g.app.Kill(holder)
	next, err := g.AwaitHolder(patient(t), func(i int) bool { return i != holder })
	if err != nil {
		t.Fatal(err)
	}
	dead, alive := g.Nodes[holder].Name, g.Nodes[next].Name
	say := func(node string, args ...string) string {
		t.Helper()
		at := filepath.Join(g.Dir, node)
		cmd := exec.CommandContext(t.Context(), binary, append(args, "--socket", at+".sock", "--data-dir", at)...)
		var hints strings.Builder
		cmd.Stderr = &hints
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%v: %v, %s", args, err, &hints)
		}
		return string(out)
	}

	// What the dead one wrote is on its disk.
	if out := say(dead, "events"); !strings.Contains(out, dead+": holds") || strings.Contains(out, "stopped in order") {
		t.Errorf("the dead one's events:\n%s", out)
	}
	// What the new holder saw comes over its socket.
	deadline := time.Now().Add(patience)
	for !strings.Contains(say(alive, "events"), alive+": holds (the process of "+dead+" ended), took ") {
		if time.Now().After(deadline) {
			t.Fatalf("the new holder's events:\n%s", say(alive, "events"))
		}
		time.Sleep(100 * time.Millisecond)
	}
	for line := range strings.Lines(say(alive, "events", "--json")) {
		var e status.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Node != alive {
			t.Errorf("%v: %s", err, line)
		}
	}
	// After its restart, the dead one knows that it was cut off.
	if err := g.app.Start(holder); err != nil {
		t.Fatal(err)
	}
	if err := g.app.AwaitReady(patient(t), 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	if out := say(dead, "events"); !strings.Contains(out, "the life before this one was cut off") {
		t.Errorf("the dead one's events after its return:\n%s", out)
	}
	if err := g.app.Stop(holder); err != nil {
		t.Error(err)
	}
	if out := say(dead, "events", "--last", "1"); !strings.Contains(out, "stopped in order") {
		t.Errorf("the last event after an orderly end:\n%s", out)
	}

	// The metrics agree with the kernel.
	metrics := get(t, g.sites[next]+"/metrics")
	err = g.Nodes[next].Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		bound := map[string]bool{}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bound[ip.Unmap().String()] = true
		}
		for _, vip := range g.VIPs {
			says := strings.Contains(metrics, `appliance_vip_bound{vip="`+vip.String()+`"} 1`)
			if !says || !bound[vip.String()] {
				t.Errorf("%s: bound by the metrics %v, by the kernel %v", vip, says, bound[vip.String()])
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{"appliance_holding 1", "appliance_takeover_duration_seconds_count 1"} {
		if !strings.Contains(metrics, "\n"+want+"\n") {
			t.Errorf("the metrics of the holder lack %s", want)
		}
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(body)
}
