package mask

import (
	"slices"
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		// With a secret.
		"Post \"https://op:hunter2@alerts.example/x\": refused": "Post \"https://***@alerts.example/x\": refused",
		"redis://:hunter2@10.0.0.1:6379/0":                      "redis://***@10.0.0.1:6379/0",
		"GET /readyz?verbose&token=hunter2&x=1":                 "GET /readyz?verbose&token=***&x=1",
		"Authorization: Basic b3A6aHVudGVyMg==":                 "Authorization: ***",
		`{"authorization": "Bearer hunter2hunter2", "a": 1}`:    `{"authorization": "***", "a": 1}`,
		"Cookie: a=hunter2; b=hunter2":                          "Cookie: ***",
		"X-Auth-Token: hunter2":                                 "X-Auth-Token: ***",
		"sends Bearer hunter2hunter2 and fails":                 "sends Bearer *** and fails",
		"AUTH hunter2":                                          "AUTH ***",
		`AUTH\ hunter2\r\n`:                                     `AUTH\ ***\r\n`,
		"AUTH op hunter2\r\nPING":                               "AUTH ***\r\nPING",
		"mysql --password=hunter2 -h db":                        "mysql --password=*** -h db",
		"check --api-key hunter2 -v":                            "check --api-key *** -v",
		"DB_PASSWORD=hunter2 failed":                            "DB_PASSWORD=*** failed",
		`password: "hunter2 hunter2", host: db`:                 `password: ***, host: db`,
		"pass=hunter2":                                          "pass=***",
		"appliance-group-key-1:hunter2hunter2hunter2":           "appliance-group-key-1:***",
		"$2a$10$hunter2hunter2hunter2":                          "$2a$***",
		"eyJhbGciOiJI.eyJzdWIiOiIx.hunter2hunter2":              "eyJ***",
		"ghp_hunter2hunter2hunter2":                             "ghp_***",
		"https://hooks.slack.com/services/T0/B0/hunter2":        "https://hooks.slack.com/services/***",
		"-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----": "-----BEGIN EC PRIVATE KEY-----***" +
			"-----END EC PRIVATE KEY-----",
		// Without one: nothing that an operator needs is lost.
		"no answer within 2s":                            "no answer within 2s",
		"10.77.0.11:6443: refuses the connection":        "10.77.0.11:6443: refuses the connection",
		"answers 401 Unauthorized to GET /readyz":        "answers 401 Unauthorized to GET /readyz",
		"[fd77::10]:6443 is passed over":                 "[fd77::10]:6443 is passed over",
		"/etc/appliance/admin.token: no such file":       "/etc/appliance/admin.token: no such file",
		"check.sh: exit status 1: pass the salt":         "check.sh: exit status 1: pass the salt",
		"group key /etc/group.key can be read by others": "group key /etc/group.key can be read by others",
		"run: chmod 600 /etc/appliance/token":            "run: chmod 600 /etc/appliance/token",
		"admin.tokenFile: /a/b":                          "admin.tokenFile: /a/b",
		"the session ended: EOF":                         "the session ended: EOF",
		"mail to op@example.org":                         "mail to op@example.org",
		"answers within 64-bit numbers: 1=2":             "answers within 64-bit numbers: 1=2",
		"fe80::1%eth0 answers, term=7":                   "fe80::1%eth0 answers, term=7",
	} {
		got := Text(in)
		if got != want {
			t.Errorf("%q\n got %q\nwant %q", in, got, want)
		}
		if again := Text(got); again != got {
			t.Errorf("%q is masked again: %q", got, again)
		}
	}
}

func TestURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://alerts.example.org/appliance":                   "https://alerts.example.org/appliance",
		"https://op:hunter2@alerts.example.org/a?token=hunter2":  "https://***@alerts.example.org/a?***",
		"https://a.example/integration/0123456789abcdef01/queue": "https://a.example/integration/***/queue",
		"http://[fd77::1]:8080/x":                                "http://[fd77::1]:8080/x",
		"hunter":                                                 "hunter",
	} {
		if got := URL(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestArguments(t *testing.T) {
	for in, want := range map[string]string{
		"/bin/check eth1":                        "/bin/check eth1",
		"/bin/redis-cli -a hunter2 ping":         "/bin/redis-cli -a *** ping",
		"/bin/mysql -u op -phunter2 db":          "/bin/mysql -u *** -p*** db",
		"/bin/curl -u op:hunter2 https://x/":     "/bin/curl -u *** https://x/",
		"/bin/curl --user op:hunter2 https://x/": "/bin/curl --user *** https://x/",
		"/bin/curl https://op:hunter2@x/ -v":     "/bin/curl https://***@x/ -v",
		"/bin/x --token hunter2 --token=hunter2": "/bin/x --token *** --token=***",
		"/bin/x --password hunter2 --port 80 -v": "/bin/x --password *** --port 80 -v",
		"/bin/x -a":                              "/bin/x -a",
	} {
		if got := Arguments(strings.Fields(in)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	got := Arguments([]string{"/bin/curl", "-H", "Authorization: Bearer hunter2hunter2"})
	if got[2] != "Authorization: ***" {
		t.Error(got)
	}
}

func FuzzText(f *testing.F) {
	f.Add("https://a:b@c/d?token=e AUTH f")
	f.Fuzz(func(t *testing.T, s string) {
		if got := Text(s); strings.Count(got, "\n") > strings.Count(s, "\n") {
			t.Errorf("%q has become %q", s, got)
		}
	})
}
