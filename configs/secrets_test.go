package configs

import (
	"fmt"
	"strings"
	"testing"
)

// What `appliance config show` prints, and what an error says, has no secret.
// A changed secret is a change all the same.
func TestSecretsAreNotShown(t *testing.T) {
	text := func(secret string) string {
		return peers3 + fmt.Sprintf(`
tracks:
- exec: [/bin/redis-cli, -a, %[1]s, ping]
- exec: [/bin/mysql, -p%[1]s, "--token=%[1]s", "https://op:%[1]s@db.example/"]
- check:
    address: 127.0.0.1:1
    path: /readyz?token=%[1]s
    headers: {Authorization: "Bearer %[1]s", X-Api-Key: %[1]s, Cookie: "a=%[1]s", X-Probe: "yes"}
hooks:
- {on: [holder], url: "https://op:%[1]s@alerts.example.org/x?key=%[1]s"}
`, secret)
	}
	cfg, err := parseHere(text("hunter2hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	shown := fmt.Sprint(cfg.Show())
	if strings.Contains(shown, "hunter2") {
		for _, v := range cfg.Show() {
			if strings.Contains(v.Value, "hunter2") {
				t.Errorf("%s is shown as %s", v.Key, v.Value)
			}
		}
	}
	for _, want := range []string{"/bin/redis-cli", "ping", "alerts.example.org", "X-Probe: yes", "/readyz?token="} {
		if !strings.Contains(shown, want) {
			t.Errorf("%s is not shown", want)
		}
	}
	if cfg.Tracks[0].Exec[2] != "hunter2hunter2" || !strings.Contains(cfg.Hooks[0].URL, "op:hunter2hunter2@") {
		t.Errorf("masked where it is used: %v, %s", cfg.Tracks[0].Exec, cfg.Hooks[0].URL)
	}
	next, err := parseHere(text("hunter3hunter3"))
	if err != nil {
		t.Fatal(err)
	}
	live, restart := cfg.Changes(next)
	if got := strings.Join(live, " "); !strings.Contains(got, "tracks") || !strings.Contains(got, "hooks") {
		t.Errorf("changes are %s, %v", got, restart)
	}
	if _, err := parseHere(peers3 + "hooks: [{on: [holder], url: 'ftp://op:hunter2@a/b'}]\n"); err == nil ||
		strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}
