package draft

import (
	"regexp"
	"testing"
)

// TestTailRegexp checks that patterns find before a last newline what they find in haproxy and keepalived.
func TestTailRegexp(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"^ok$", "ok\n", true},
		{"^ok$", "ok\n\n", false},
		{"(bad$|worse$)", "it is worse\n", true},
		{`ok\$`, "ok$ and more", true},
		{`ok\$`, `ok\`, false},
		{`ok\\$`, "ok\\\n", true},
		{"[a$]b", "$b", true},
		{"[^]$]b$", "xb\n", true},
		{"[[:alpha:]$]b", "$b", true},
		{`[\]$]b`, "$b", true},
		{`\Qa$\Eb$`, "a$b\n", true},
		{"^ok$?x", "okx", true},
		{"(?m)^role:master\r$", "a\nrole:master\r\nb", true},
		{"$", "\n", true},
	} {
		ours := TailRegexp(tt.pattern)
		if got := regexp.MustCompile(ours).MatchString(tt.text); got != tt.want {
			t.Errorf("%q became %q, which matches %q: %t", tt.pattern, ours, tt.text, got)
		}
	}
}
