package pathprobe

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

// A node that leaves or comes back makes one line in the log, however many frontends
// it serves.
func TestProberLogsOncePerNode(t *testing.T) {
	var log strings.Builder
	p := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, path := range []Path{PathProved, PathNoAnswer} {
		for port := range uint16(50) {
			for _, node := range []string{"n2", "n3"} {
				p.paths.report(pathID{netip.AddrPortFrom(netip.MustParseAddr("10.77.0.10"), 6443+port), node}, path)
			}
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines, want 4:\n%s", n, log.String())
	}
}
