package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"appliance/status"
	"appliance/status/journal"
	"appliance/status/metrics"
	"appliance/status/report"
	"appliance/status/statustest"
)

// server serves an admin handler over a made-up group on a real port.
func server(t *testing.T, c *statustest.Cluster) (addr string, p *Page) {
	t.Helper()
	p = newPage(t, c)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx) })
	snapshot := func() status.Snapshot { return c.Snapshots["n1"] }
	h := Admin(AdminConfig{
		Snapshot: snapshot, Page: p, Journal: c.Journals["n1"], Metrics: metrics.New(snapshot, "").Handler(),
	})
	wg.Go(func() { Serve(ctx, l, h, slog.Default()) })
	t.Cleanup(func() { end(); wg.Wait(); http.DefaultClient.CloseIdleConnections() })
	return l.Addr().String(), p
}

// page is the page that a browser gets at addr.
func page(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// revision is the revision of the page at addr, from which its script would continue.
func revision(t *testing.T, addr string) string {
	t.Helper()
	_, rest, _ := strings.Cut(page(t, addr), `data-revision="`)
	rev, _, _ := strings.Cut(rest, `"`)
	return rev
}

// listen reads a stream of server-sent events until hear says that it is enough.
func listen(ctx context.Context, url string, hear func(event, data string) (enough bool)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", resp.Status)
	}
	event := ""
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = v
		}
		if v, ok := strings.CutPrefix(lines.Text(), "data: "); ok && hear(event, v) {
			return nil
		}
	}
	return fmt.Errorf("the stream ended: %w", lines.Err())
}

func TestLiveSendsWhatChanges(t *testing.T) {
	c := statustest.New(t, time.Now(), 2, 3)
	addr, _ := server(t, c)
	url := "http://" + addr + "/live?revision=" + revision(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ticks, added := 0, false
	err := listen(ctx, url, func(event, data string) bool {
		switch event {
		case "layout":
			t.Error("told to load the page anew")
			return true
		case "tick":
			if _, err := time.Parse(time.RFC3339Nano, data); err != nil {
				t.Error(err)
			}
			if ticks++; ticks == 2 {
				added = true
				c.Journals["n1"].Add(status.Event{Kind: status.OfBackend, Subject: "kube-apiserver / <b>x</b>", What: "is down"})
			}
		case "part":
			var part struct{ ID, HTML string }
			if err := json.Unmarshal([]byte(data), &part); err != nil {
				t.Error(err)
			}
			if part.ID == "history" {
				t.Error("what has not changed is sent again")
			}
			if strings.Contains(part.HTML, "<b>x</b>") {
				t.Error("names are not escaped")
			}
			return added && part.ID == "events" && strings.Contains(part.HTML, "&lt;b&gt;x&lt;/b&gt;")
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A page of an earlier run, or with other load balancers, is reloaded.
func TestLiveLayout(t *testing.T) {
	c := statustest.New(t, time.Now(), 1, 2)
	addr, _ := server(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	layout := func(event, _ string) bool { return event == "layout" }
	for _, rev := range []string{"older.7", "", "<script>", "x.-1"} {
		if err := listen(ctx, "http://"+addr+"/live?revision="+rev, layout); err != nil {
			t.Errorf("%q: %v", rev, err)
		}
	}
}

func TestEventsStream(t *testing.T) {
	c := statustest.New(t, time.Now(), 1, 1)
	addr, _ := server(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got []uint64
	err := listen(ctx, "http://"+addr+"/events?since=2", func(event, data string) bool {
		var e status.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil || event != "event" {
			t.Errorf("%s %s: %v", event, data, err)
		}
		got = append(got, e.Seq)
		if len(got) == 2 {
			c.Journals["n1"].Add(status.Event{Kind: status.OfProcess, What: "something"})
		}
		return len(got) == 3
	})
	if err != nil || fmt.Sprint(got) != "[3 4 5]" {
		t.Errorf("got %v, %v", got, err)
	}
}

// Two hundred viewers and some that do not read cost everybody else next to nothing: the page is rendered once for all,
// nothing is queued for anybody, and whoever adds an event does not wait.
func TestManyListeners(t *testing.T) {
	c := statustest.New(t, time.Now(), 5, 5)
	addr, p := server(t, c)
	rev := revision(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()

	for range 5 { // they ask and never read
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.(*net.TCPConn).SetReadBuffer(1024)
		fmt.Fprintf(conn, "GET /live?revision=%s HTTP/1.1\r\nHost: localhost\r\n\r\n", rev)
	}
	const many = 200
	var heard atomic.Int64
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			first := true
			// Who cannot read for writeTimeout is cut off and asks again, as browsers do.
			err := io.ErrUnexpectedEOF
			for errors.Is(err, io.ErrUnexpectedEOF) && ctx.Err() == nil {
				err = listen(ctx, "http://"+addr+"/live?revision="+rev, func(event, data string) bool {
					if first {
						first = false
						heard.Add(1)
					}
					return event == "part" && strings.Contains(data, "the last of all")
				})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	for heard.Load() < many && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	// The hot path is the balancer's: it adds an event and goes on.
	worst := time.Duration(0)
	for i := range 1000 {
		began := time.Now()
		c.Journals["n1"].Add(status.Event{Kind: status.OfBackend, What: "is up", Subject: fmt.Sprint(i)})
		worst = max(worst, time.Since(began))
	}
	if worst > time.Second { // it takes microseconds; a busy machine may preempt it
		t.Errorf("adding an event took %s", worst)
	}
	c.Journals["n1"].Add(status.Event{Kind: status.OfBackend, What: "is the last of all"})
	wg.Wait()
	p.mu.Lock()
	rendered := p.shown.revision
	p.mu.Unlock()
	if rendered > 300 {
		t.Errorf("rendered %d times for %d listeners", rendered, many)
	}
}

// One stream too many is refused.
func TestListenersAreBounded(t *testing.T) {
	s := &streams{journal: journal.Open(t.TempDir(), "n1", slog.New(slog.DiscardHandler))}
	s.open.Store(maxStreams)
	w := ask{path: "/events"}.of(http.HandlerFunc(s.events))
	if w.Code != http.StatusServiceUnavailable || s.open.Load() != maxStreams {
		t.Errorf("%d, %d open", w.Code, s.open.Load())
	}
}

// Without viewers nothing is rendered, and no peer is asked.
func TestPageSleeps(t *testing.T) {
	c := statustest.New(t, time.Now(), 1, 1)
	p := newPage(t, c)
	asked := atomic.Int64{}
	inner := p.cfg.Ask
	p.peers = report.NewCollector(func(ctx context.Context, id string) ([]byte, error) {
		asked.Add(1)
		return inner(ctx, id)
	}, p.wakeUp)
	ctx, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for range 3 {
		c.Journals["n1"].Add(status.Event{What: "x"})
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(renderEvery)
	end()
	<-done
	if p.shown.revision != 0 || asked.Load() != 0 {
		t.Errorf("rendered %d times, asked %d", p.shown.revision, asked.Load())
	}
}

// The script lays a changed part over the old one node by node. A space around a part would shift all its nodes at the
// first change, and close what the reader has opened.
func TestPartsAreWhatThePageHas(t *testing.T) {
	c := statustest.New(t, time.Now(), 2, 3)
	c.Route()
	addr, p := server(t, c)
	body := page(t, addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.shown.parts) < 8 {
		t.Errorf("%d parts", len(p.shown.parts))
	}
	for _, part := range p.shown.parts {
		if part.HTML == "" || !strings.Contains(body, ">"+string(part.HTML)+"</section>") {
			t.Errorf("the page has %s with something around it", part.ID)
		}
	}
}

// The page has every node's sessions with routers, and why one is not there; without routers it has nothing of them.
func TestPageShowsRouters(t *testing.T) {
	c := statustest.New(t, time.Now(), 1, 1)
	bare, _ := server(t, c)
	if body := page(t, bare); strings.Contains(body, "Routers") {
		t.Error("routers where there are none")
	}
	c = statustest.New(t, time.Now(), 1, 1)
	c.Route()
	c.Edit("n1", func(s *status.Snapshot) {
		s.Announce.Addresses[0].Leaving, s.Announce.Addresses[0].Reason = true, "this node <stops>"
	})
	routed, _ := server(t, c)
	body := page(t, routed)
	for _, want := range []string{
		`<a href="#routers">Routers</a>`, `<section id="routers">`, "Routers are told by BGP", "n2 <span>announces</span>",
		"n1 <span>leaves: this node &lt;stops&gt;</span>", "10.77.0.2<small>AS 64500</small>",
		`<span class="badge bad">idle</span><small class="why">BFD: nothing was heard for 150ms</small>`,
		"silence of 150ms counts", "lost 1 times", "198.51.100.10</td>",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(body, "ZgotmplZ") {
		t.Error("a value does not fit where it stands")
	}
}
