package host

import (
	"errors"
	"strings"
	"testing"
)

// No line of the log has a secret, whichever way it came there.
func TestLogHasNoSecrets(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out strings.Builder
		log, err := NewLog(&out, format, "debug", nil)
		if err != nil {
			t.Fatal(err)
		}
		log.Warn("Post https://op:hunter2@a.example/: refused", "error", errors.New("Authorization: Bearer hunter2hunter2"),
			"reason", "token=hunter2", "arguments", []string{"/bin/redis-cli", "-a", "hunter2"}, "count", 3)
		log.With("url", "http://op:hunter2@b/").Info("x")
		if text := out.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "a.example") ||
			!strings.Contains(text, "/bin/redis-cli") || strings.Count(text, "\n") != 2 {
			t.Errorf("%s: %s", format, text)
		}
	}
}
