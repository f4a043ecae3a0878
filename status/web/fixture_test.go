package web

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"appliance/status"
	"appliance/status/statustest"
)

// newPage is the page of n1.
func newPage(t testing.TB, c *statustest.Cluster) *Page {
	return NewPage(PageConfig{
		Snapshot: func() status.Snapshot { s := c.Snapshots["n1"]; s.Time = time.Now(); return s },
		Journal:  c.Journals["n1"], Samples: c.Samples["n1"],
		Ask: func(_ context.Context, id string) ([]byte, error) { return c.Report(id) },
		Log: slog.New(slog.DiscardHandler),
	})
}
