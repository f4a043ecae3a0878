package metrics

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"

	"appliance/balancer"
	"appliance/status"
)

// Metrics is what Prometheus gets: the snapshot as metrics, and the distributions that a snapshot does not have. Label
// values are names from the configuration, so the operator decides how many there are: no label holds the address of a
// client, an error or anything else from outside.
type Metrics struct {
	registry *prometheus.Registry
	gather   func() []*dto.MetricFamily
	checks   *prometheus.HistogramVec
	takeover prometheus.Histogram
	commits  prometheus.Histogram
	events   *prometheus.CounterVec

	mu  sync.Mutex
	lbs map[string]bool // the load balancers with a histogram
}

// New registers all metrics. An empty version is left out.
func New(snapshot func() status.Snapshot, version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		checks: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "appliance_check_duration_seconds",
			Help: "Time that checks of backends took, by load balancer and result (ok, failed).",
			// A local connection takes 0.1 ms, a TLS handshake about 5 ms, and the default timeout is 500 ms.
			Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"loadbalancer", "result"}),
		takeover: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "appliance_takeover_duration_seconds",
			Help: "Time from the last sign of the old holder to the tenure of this node, " +
				"for each tenure that followed another.",
			Buckets: []float64{.005, .01, .02, .05, .1, .15, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "appliance_raft_commit_duration_seconds",
			Help: "Time from asking for a change until a majority had it on disk, " +
				"for each change that this peer committed as leader.",
			// A fast disk takes 1 ms to sync, a spinning one 10 ms, and one that is shared with others sometimes a second.
			Buckets: []float64{.001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "appliance_events_total",
			Help: "Entries of the journal of events, by kind.",
		}, []string{"kind"}),
		lbs: make(map[string]bool),
	}
	for _, k := range status.EventKinds() {
		m.events.WithLabelValues(string(k))
	}
	m.registry.MustRegister(m.checks, m.takeover, m.commits, m.events,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.gather = func() []*dto.MetricFamily { return fromSnapshot(snapshot(), version) }
	return m
}

// Handler answers scrapes. One metric that fails does not take the others with it.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
		// Compressing would take longer than everything else.
		DisableCompression:  true,
		MaxRequestsInFlight: 4,
	})
}

// Gather implements prometheus.Gatherer. The metrics of the snapshot skip the Collector interface and the checks of the
// registry, which with a thousand backends take several times as long as everything else.
func (m *Metrics) Gather() ([]*dto.MetricFamily, error) {
	all, err := m.registry.Gather()
	all = append(all, m.gather()...)
	slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all, err
}

// Checked records the duration and the result of a check.
func (m *Metrics) Checked(t balancer.Target, took time.Duration, err error) {
	m.mu.Lock()
	m.lbs[t.LoadBalancer] = true
	m.mu.Unlock()
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.checks.WithLabelValues(t.LoadBalancer, result).Observe(took.Seconds())
}

// Keep forgets load balancers that are no longer among names.
func (m *Metrics) Keep(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.lbs {
		if !slices.Contains(names, name) {
			m.checks.DeletePartialMatch(prometheus.Labels{"loadbalancer": name})
			delete(m.lbs, name)
		}
	}
}

// Noted counts an entry of the journal.
func (m *Metrics) Noted(e status.Event) {
	m.events.WithLabelValues(string(e.Kind)).Inc()
}

// Committed records how long a change took that this peer made as leader.
func (m *Metrics) Committed(took time.Duration) { m.commits.Observe(took.Seconds()) }

// TookOver records the measured duration of a failover to this node.
func (m *Metrics) TookOver(d time.Duration) { m.takeover.Observe(d.Seconds()) }
