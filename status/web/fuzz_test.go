package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"appliance/status/report"
	"appliance/status/statustest"
)

// FuzzReport: whatever a peer says of itself, the page is rendered, without its markup: a fault in there would end the
// process of every node that somebody looks at.
func FuzzReport(f *testing.F) {
	c := statustest.New(f, time.Now(), 2, 2)
	c.Fill(1)
	c.Route()
	for _, id := range []string{"n2", "n3"} {
		packed, err := c.Report(id)
		if err != nil {
			f.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			f.Fatal(err)
		}
		text, err := io.ReadAll(z)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
		f.Add(strings.ReplaceAll(string(text), `":"`, `":"<script>`)) // names, reasons, versions
	}
	f.Add(`{"snapshot":{"loadBalancers":[{"name":"etcd","backends":[{}]}]},"load":{"etcd":[1,2,3]},"ages":[-9e18]}`)
	f.Add(`{"snapshot":{"time":"0001-01-01T00:00:00Z","group":{"peers":[{}]}},"events":[{}],"peak":{"":{"":0}}}`)
	f.Add(`{"notReady":[{}]}`) // fewer texts than reasons
	p := newPage(f, c)         // one for all, since its templates take long
	f.Fuzz(func(t *testing.T, text string) {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		io.WriteString(z, text)
		z.Close()
		answer := func(context.Context, string) ([]byte, error) { return packed.Bytes(), nil }
		p.peers, p.shown = report.NewCollector(answer, p.wakeUp), rendering{}
		for range 2 { // rates are of two reports
			p.peers.Ask(t.Context(), []string{"n2", "n3"}, true)
			p.peers.Wait()
			if err := p.render(c.Snapshots["n1"]); err != nil {
				t.Errorf("the page has no place for %s: %v", text, err)
			}
		}
		for _, part := range p.shown.parts {
			if strings.Contains(string(part.HTML), "<script") {
				t.Errorf("%s has the markup of %s", part.ID, text)
			}
		}
	})
}
