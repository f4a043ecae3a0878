package web

import (
	"testing"
	"time"

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
