package fence

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestTwins: of processes with one id, those that were restarted are told from those that live side by side.
func TestTwins(t *testing.T) {
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for name, tt := range map[string]struct {
		words string // who speaks in each second
		found int    // how often it is said
		still bool   // and holds at the end
	}{
		"one":                           {"aaaaaaaaaaaaaaaa", 0, false},
		"a restart":                     {"aaaabbbbbbbbbbbb", 0, false},
		"two restarts":                  {"aaaabbbbcccccccc", 0, false},
		"late words of the former":      {"aaaabababbbbbbbb", 0, false},
		"two restarts, and late words":  {"aabbcaccccccbcccca", 0, false},
		"two that live":                 {"aaaababababababababababababab", 1, true},
		"a copy that has come and gone": {"aaaab" + strings.Repeat("a", 60), 1, false},
		"two that live for long":        {strings.Repeat("ab", 200), 1, true},
		"one long after the other":      {"ab" + strings.Repeat("b", 5) + strings.Repeat(" ", 60) + "aaaaaa", 0, false},
		"again, an hour later": {strings.Repeat("ab", 20) + strings.Repeat("b", 3600) + strings.Repeat("ab", 20), 2,
			true},
	} {
		t.Run(name, func(t *testing.T) {
			var twins Twins
			now, found := time.Unix(1000, 0), 0
			for _, who := range tt.words {
				now = now.Add(time.Second)
				at := here
				if who == 'b' {
					at = there
				}
				if who == ' ' {
					continue
				}
				if text := twins.Hear("n", string(who), at, now); text != "" {
					found++
					for _, want := range []string{"id n", here.String(), there.String(), "localPeer.id", "data directory"} {
						if !strings.Contains(text, want) {
							t.Errorf("%q does not say %q", text, want)
						}
					}
				}
			}
			if still := twins.Of("n", now) != ""; found != tt.found || still != tt.still {
				t.Errorf("said %d times, and holds: %v; want %d, %v", found, still, tt.found, tt.still)
			}
		})
	}
}
