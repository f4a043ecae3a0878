package metrics

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/statustest"
)

func scrape(t testing.TB, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// everything is Metrics in which every metric has a value.
func everything(t testing.TB, c *statustest.Cluster) *Metrics {
	m := New(func() status.Snapshot { return c.Snapshots["n2"] }, "v0.1.0")
	c.Route()
	c.Edit("n2", func(s *status.Snapshot) {
		s.Announce.Sessions[1].Untold = []string{"2001:db8:1::10: the router takes no IPv6 routes over this session"}
		s.Group.Peers[2].Doubled = "two processes run with the id n3"
		s.Differences = []status.Difference{{Peer: "n3", Key: "version", Here: "v0.1.0", There: "v0.0.9"}}
	})
	to := balancer.Target{LoadBalancer: "kube-apiserver"}
	m.Checked(to, 300*time.Microsecond, nil)
	m.Checked(to, 500*time.Millisecond, errors.New("no"))
	m.TookOver(12 * time.Millisecond)
	m.Committed(7 * time.Millisecond)
	m.Noted(status.Event{Kind: status.OfBackend})
	return m
}

// ours are the names of our own metrics.
func ours(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE appliance_"); ok {
			name, _, _ = strings.Cut(name, " ")
			names = append(names, "appliance_"+name)
		}
	}
	return names
}

func TestMetricsAreClean(t *testing.T) {
	text := scrape(t, everything(t, statustest.New(t, time.Now(), 2, 3)))
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "appliance_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if n := len(ours(text)); n < 40 {
		t.Errorf("only %d metrics", n)
	}
}

func TestMetricsSay(t *testing.T) {
	text := scrape(t, everything(t, statustest.New(t, time.Now(), 2, 3)))
	for _, line := range []string{
		`appliance_holding 1`,
		`appliance_ready 1`,
		`appliance_raft_term 4`,
		`appliance_raft_state{state="leader"} 1`,
		`appliance_raft_state{state="follower"} 0`,
		`appliance_tenures_ended_total{cause="handover"} 1`,
		`appliance_vip_answering{vip="10.77.0.10"} 1`,
		`appliance_vip_answers_total{vip="fd77::10"} 1200`,
		`appliance_id_doubled{id="n2"} 0`,
		`appliance_id_doubled{id="n3"} 1`,
		`appliance_peer_connected{peer="n1"} 1`,
		`appliance_peer_round_trip_seconds{peer="n3"} 0.00018`,
		`appliance_loadbalancer_plane{loadbalancer="kube-apiserver",plane="ipvs"} 1`,
		`appliance_loadbalancer_plane{loadbalancer="kube-apiserver",plane="direct"} 0`,
		`appliance_backend_up{backend="10.77.0.13:6443",loadbalancer="kube-apiserver"} 0`,
		`appliance_backend_up{backend="10.77.0.11:6443",loadbalancer="kube-apiserver"} 1`,
		`appliance_backend_connections{backend="10.77.1.11:6444",loadbalancer="ingress"} 12`,
		`appliance_check_duration_seconds_count{loadbalancer="kube-apiserver",result="failed"} 1`,
		`appliance_takeover_duration_seconds_bucket{le="0.02"} 1`,
		`appliance_takeover_duration_seconds_bucket{le="0.01"} 0`,
		`appliance_events_total{kind="backend"} 1`,
		`appliance_plane_failing{plane="ipvs"} 0`,
		`appliance_raft_commit_duration_seconds_bucket{le="0.01"} 1`,
		`appliance_raft_commit_duration_seconds_bucket{le="0.005"} 0`,
		`appliance_hook_events_total{result="failed"} 1`,
		`appliance_unfit 0`,
		`appliance_loadbalancer_queued_connections{loadbalancer="ingress"} 2`,
		`appliance_backend_queued_connections{backend="10.77.1.11:6444",loadbalancer="ingress"} 4`,
		`appliance_backend_slow_start_ratio{backend="10.77.1.11:6444",loadbalancer="ingress"} 0.25`,
		`appliance_backend_slow_start_ratio{backend="10.77.1.12:6444",loadbalancer="ingress"} 1`,
		`appliance_backend_passed_over{backend="10.77.1.11:6444",loadbalancer="ingress"} 0`,
		`appliance_vip_routed{by="bgp",vip="198.51.100.10"} 1`,
		`appliance_bgp_session_up{router="10.77.0.1"} 1`,
		`appliance_bgp_session_announced{router="10.77.0.1"} 1`,
		`appliance_bgp_session_untold{router="10.77.0.1"} 0`,
		`appliance_bgp_session_untold{router="10.77.0.2"} 1`,
		`appliance_bgp_session_messages_total{direction="sent",router="10.77.0.1"} 70`,
		`appliance_bfd_up{router="10.77.0.1"} 1`,
		`appliance_bfd_detection_seconds{router="10.77.0.1"} 0.15`,
	} {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
	if strings.Contains(text, `queued_connections{backend="10.77.0.11`) ||
		strings.Contains(text, `queued_connections{loadbalancer="kube-apiserver"`) {
		t.Error("a queue where there is none")
	}
	if strings.Contains(text, `failures_total{backend="10.77.0.11`) {
		t.Error("failures where nobody counts them")
	}
	if strings.Contains(text, `peer="n2"`) {
		t.Error("the node is a peer of its own")
	}
}

// Load balancers that are gone leave no metrics behind.
func TestMetricsForget(t *testing.T) {
	m := everything(t, statustest.New(t, time.Now(), 1, 1))
	m.Keep([]string{"kube-apiserver"})
	if !strings.Contains(scrape(t, m), `appliance_check_duration_seconds_count{loadbalancer="kube-apiserver"`) {
		t.Error("what is there is forgotten")
	}
	m.Keep(nil)
	if strings.Contains(scrape(t, m), `appliance_check_duration_seconds_count{`) {
		t.Error("what is gone is remembered")
	}
}

// Two backends of one name must not spoil all other metrics.
func TestMetricsWithAClash(t *testing.T) {
	c := statustest.New(t, time.Now(), 1, 2)
	s := c.Snapshots["n2"]
	s.LoadBalancers[0].Backends[1].Name = s.LoadBalancers[0].Backends[0].Name
	if text := scrape(t, everything(t, c)); !slices.Contains(ours(text), "appliance_holding") {
		t.Error("nothing is left")
	}
}

func BenchmarkScrape(b *testing.B) {
	c := statustest.New(b, time.Now(), 50, 20)
	m := everything(b, c)
	b.ReportMetric(float64(strings.Count(scrape(b, m), "\n")), "lines")
	b.ReportAllocs()
	h, r := m.Handler(), httptest.NewRequest(http.MethodGet, "/metrics", nil)
	for b.Loop() {
		h.ServeHTTP(nowhere{http.Header{}}, r)
	}
}

// nowhere is a response that costs nothing itself.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header { return n.header }

func (n nowhere) Write(p []byte) (int, error) { return len(p), nil }

func (n nowhere) WriteHeader(int) {}

var update = flag.Bool("update", false, "write the list of metrics anew")

// The list of metrics in the docs is that of a complete scrape.
func TestMetricsList(t *testing.T) {
	all, err := everything(t, statustest.New(t, time.Now(), 2, 3)).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# Metrics\n\nWhat `/metrics` has beside the metrics of Go and of the process. `go test " +
		"./status/metrics -run MetricsList -update` writes this list.\n\n" +
		"| metric | type | labels | |\n|---|---|---|---|\n")
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), "appliance_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()),
			strings.Join(labels, ", "), f.GetHelp())
	}
	const path = "../../docs/metrics.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), b.String()); diff != "" {
		t.Errorf("%s is not what a scrape says; run go test -update:\n%s", path, diff)
	}
}
