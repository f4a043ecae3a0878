package metrics

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"appliance/status/statustest"
)

// Dashboard and alerts use metrics that exist, with labels that they have, and every important metric is used.
func TestMonitoring(t *testing.T) {
	text := scrape(t, everything(t, statustest.New(t, time.Now(), 2, 3)))
	labels := map[string]map[string]bool{} // of each sample name
	sample := regexp.MustCompile(`(?m)^(appliance_\w+)(?:\{(.*)\})? `)
	for _, m := range sample.FindAllStringSubmatch(text, -1) {
		if labels[m[1]] == nil {
			labels[m[1]] = map[string]bool{"job": true, "instance": true}
		}
		for _, pair := range strings.Split(m[2], `",`) {
			name, _, _ := strings.Cut(pair, "=")
			labels[m[1]][name] = true
		}
	}
	used := map[string]bool{}
	check := func(where, expr string) {
		name := regexp.MustCompile(`(appliance_\w+)(?:\{([^}]*)\})?`)
		found := name.FindAllStringSubmatch(expr, -1)
		if len(found) == 0 && !strings.Contains(expr, "up{") {
			t.Errorf("%s: %q uses no metric of ours", where, expr)
		}
		known := map[string]bool{"le": true}
		for _, m := range found {
			used[m[1]] = true
			if labels[m[1]] == nil {
				t.Errorf("%s: there is no metric %s", where, m[1])
			}
			maps.Copy(known, labels[m[1]])
			for _, pair := range strings.Split(m[2], ",") {
				if name, _, ok := strings.Cut(pair, "="); ok && !labels[m[1]][strings.Trim(name, " !~")] {
					t.Errorf("%s: %s has no label %s", where, m[1], name)
				}
			}
		}
		for _, m := range regexp.MustCompile(`(?:by|on) \(([^)]*)\)`).FindAllStringSubmatch(expr, -1) {
			for _, name := range strings.Split(m[1], ",") {
				if !known[strings.TrimSpace(name)] {
					t.Errorf("%s: nothing in %q has the label %s", where, expr, name)
				}
			}
		}
	}

	data, err := os.ReadFile("../../packaging/monitoring/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(data, &rules); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			n++
			check(r.Alert, r.Expr)
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s lacks a severity, or what to do", r.Alert)
			}
			for _, text := range r.Annotations {
				for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
					if !strings.Contains(r.Expr, m[1]) && !regexp.MustCompile(`\bappliance_|\bup\b`).MatchString(r.Expr) {
						t.Errorf("%s speaks of label %s", r.Alert, m[1])
					}
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d alerts", n)
	}

	data, err = os.ReadFile("../../packaging/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("panel %q has no target, or the id of another", p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			check(p.Title, target.Expr)
		}
	}
	for _, must := range []string{
		"appliance_holding", "appliance_ready", "appliance_backend_up", "appliance_vip_foreign_claims_total",
		"appliance_takeover_duration_seconds_bucket",
	} {
		if !used[must] {
			t.Errorf("neither dashboard nor alerts look at %s; they use %v", must, slices.Sorted(maps.Keys(used)))
		}
	}
}

// The alerts fire when they should, and only then.
func TestAlerts(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool; `apt-get install prometheus`, as integration/setup.sh test does")
	}
	out, err := exec.Command(promtool, "test", "rules", "../../packaging/monitoring/rules_test.yaml").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
