package node

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"appliance/configs"
)

// TestLogCopy: lines go to log.copy besides stderr, also the last ones, and a place that is not there says so on
// stderr.
func TestLogCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "appliance.log")
	for _, at := range []string{path, filepath.Join(path, "not-there")} {
		var stderr strings.Builder
		book, copies, err := openLog(&stderr, configs.LogSettings{
			Format: "text", Level: "info", Copy: at, Facility: "local0",
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			book.Log(t.Context(), slog.LevelWarn, "hello", "peer", "n2")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what waits is written all the same
		var running sync.WaitGroup
		running.Go(func() { _ = copies.Run(ctx) })
		running.Wait()
		if strings.Count(stderr.String(), "level=WARN msg=hello peer=n2\n") != 3 {
			t.Errorf("stderr: %q", &stderr)
		}
		if c := copies.Counts(); at == path && (c.Written != 3 || c.Dropped != 0) || at != path &&
			(c.Dropped != 3 || !strings.Contains(stderr.String(), `about="this program"`)) {
			t.Errorf("%s: %+v\n%s", at, c, &stderr)
		}
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != strings.Repeat("level=WARN msg=hello peer=n2\n", 3) {
		t.Errorf("%q, %v", text, err)
	}
}
