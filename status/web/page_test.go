package web

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"appliance/status"
	"appliance/status/statustest"
)

func BenchmarkRender(b *testing.B) {
	c := statustest.New(b, time.Now(), 50, 20)
	c.Fill(1)
	p := newPage(b, c)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.render(c.Snapshots["n1"]); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWorkersOnThePage(t *testing.T) {
	c := statustest.New(t, time.Now(), 1, 2)
	p := newPage(t, c)
	s := c.Snapshots["n1"]
	workers := func() string {
		t.Helper()
		if err := p.render(s); err != nil {
			t.Fatal(err)
		}
		for _, part := range p.shown.parts {
			if part.ID == "workers" {
				return string(part.HTML)
			}
		}
		return ""
	}
	if html := workers(); html != "" {
		t.Errorf("no worker follows, and the page has %s", html)
	}
	s.Group.WorkersTotal = 1
	s.Group.Workers = []status.WorkerView{{ID: "<w1>", Address: netip.MustParseAddr("192.0.2.50"), Since: s.Time,
		Version: "v7"}}
	if html := workers(); !strings.Contains(html, "<li>&lt;w1&gt;, 192.0.2.50, for <") ||
		!strings.Contains(html, ", v7</li>") {
		t.Errorf("the page has %s", html)
	}
	p.cfg.HideVersion = true
	if html := workers(); strings.Contains(html, "v7") || !strings.Contains(html, "w1") {
		t.Errorf("without versions, the page has %s", html)
	}
}

func TestNothingBalancedOnThePage(t *testing.T) {
	for _, alone := range []bool{false, true} {
		c := statustest.New(t, time.Now(), 1, 2)
		p, s := newPage(t, c), c.Snapshots["n1"]
		if alone {
			s.LoadBalancers = nil
		}
		if err := p.render(s); err != nil {
			t.Fatal(err)
		}
		verdict, page := string(p.shown.parts[0].HTML), httptest.NewRecorder()
		if strings.Contains(verdict, "nothing is balanced") != alone || strings.Contains(verdict, "Backends up") == alone {
			t.Errorf("nothing balanced %v: %s", alone, verdict)
		}
		p.write(page, http.StatusOK, "layout.html", map[string]any{"Parts": p.shown.parts, "Now": s.Time})
		if strings.Contains(page.Body.String(), "#loadbalancers") == alone {
			t.Errorf("nothing balanced %v: %s", alone, page.Body)
		}
	}
}
