package mask

import (
	"net/url"
	"regexp"
	"strings"
)

// Mark stands where a secret was.
const Mark = "***"

// secretName is the end of the name of something that is secret.
const secretName = `[\w.-]*(?:password|passwd|passphrase|pass|pwd|secret|token|api[-_]?key|` +
	`access[-_]?key|private[-_]?key|auth[-_]?key|routing[-_]?key|signature|sig|credentials?|session[-_]?id)`

// rules find a secret, and say what is left of the match. They are in the order in which they are used.
var rules = []struct {
	find *regexp.Regexp
	put  string
}{
	// Private keys, and what follows them if the end was cut off.
	{regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|$)`),
		"$1" + Mark + "$2"},
	// A header that says who asks, to the end of the line or of the quotes around it.
	{regexp.MustCompile(`(?i)\b((?:proxy-)?authorization|cookie|set-cookie|x-[\w-]*(?:token|key|auth|secret)[\w-]*)` +
		`(["']?\s*:\s*["']?)[^\r\n"']+`), "$1$2" + Mark},
	// user:password@ of a URL. A name without a password may be a token.
	{regexp.MustCompile(`(://)[^\s/@?#"'<>]+(@)`), "$1" + Mark + "$2"},
	{regexp.MustCompile(`(?i)\b(bearer|basic|digest|token)(\s+)[\w~+/=.:-]{8,}`), "$1$2" + Mark},
	// AUTH of Redis, SMTP and others, as a check sends it: in capitals, with one or two words.
	{regexp.MustCompile(`\b(AUTH)((?:\\)?\s+)[^\s\\"']+(?:(?:\\)?[ \t]+[^\s\\"']+)?`), "$1$2" + Mark},
	{regexp.MustCompile(`(?i)\b(requirepass|masterauth)(\s+)\S+`), "$1$2" + Mark},
	// name=value, "name": "value" and --name value.
	{regexp.MustCompile(`(?i)([?&;\s"'{,(]|^|--?)(` + secretName + `)(["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s&;,"'})]+)`),
		"$1$2$3" + Mark},
	{regexp.MustCompile(`(?i)(--?` + secretName + `)(\s+)("[^"]*"|'[^']*'|[^\s-]\S*)`), "$1$2" + Mark},
	// Keys that name themselves: this program's, hashes of passwords, and tokens of well-known services.
	{regexp.MustCompile(`\b(appliance-(?:group|worker)-key-1:)[\w+/]{8,}`), "$1" + Mark},
	{regexp.MustCompile(`(\$(?:2[abxy]?|1|5|6|y|argon2\w*)\$)[\w./$=,+-]{10,}`), "$1" + Mark},
	{regexp.MustCompile(`\b(eyJ)[\w-]{8,}\.[\w-]{8,}\.[\w-]*`), "$1" + Mark},
	{regexp.MustCompile(`\b(gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk_live_|AKIA|ASIA|AIza)[\w-]{12,}`), "$1" + Mark},
	// Web hooks whose path is the secret.
	{regexp.MustCompile(`(//hooks\.slack\.com/[\w-]+/|/api/webhooks/\d+/)[\w/-]+`), "$1" + Mark},
}

// Text is s without what looks like a secret. It may take out too much, and never adds a line.
func Text(s string) string {
	if !strings.ContainsAny(s, "@=: $-_") && !strings.Contains(s, "eyJ") {
		return s
	}
	for _, r := range rules {
		s = r.find.ReplaceAllString(s, r.put)
	}
	return s
}

// URL is a web address without what a person does not need to find the host: user, password, query, and parts of the
// path that look random.
func URL(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return Text(s)
	}
	out := u.Scheme + "://"
	if u.User != nil {
		out += Mark + "@"
	}
	out += u.Host
	if p := u.EscapedPath(); p != "" {
		parts := strings.Split(p, "/")
		for i, part := range parts {
			if random(part) {
				parts[i] = Mark
			}
		}
		out += strings.Join(parts, "/")
	}
	if u.RawQuery != "" {
		out += "?" + Mark
	}
	return Text(out)
}

// random reports whether a part of a path looks like a key: long, with letters and digits.
func random(part string) bool {
	return len(part) >= 32 || len(part) >= 16 && strings.ContainsAny(part, "0123456789") &&
		strings.ContainsFunc(part, func(r rune) bool { return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' })
}

// secretFlag is an argument whose next one is a secret: -u, -p and -a as curl, mysql and redis-cli have them.
var secretFlag = regexp.MustCompile(`(?i)^(?:-[upa]|-{1,2}` + secretName + `|--(?:user|auth|cookie|proxy-user|key))$`)

// attached is -p with the secret right behind it, as mysql has it.
var attached = regexp.MustCompile(`^(-[upa])[^=-].*$`)

// Arguments are those of a program without secrets. The program itself, which is the first, stays.
func Arguments(argv []string) []string {
	out := make([]string, len(argv))
	for i, a := range argv {
		switch {
		case i == 0:
			out[i] = Text(a)
		case secretFlag.MatchString(argv[i-1]) && i > 1:
			out[i] = Mark
		case secretFlag.MatchString(a):
			out[i] = a
		default:
			out[i] = Text(attached.ReplaceAllString(a, "$1"+Mark))
		}
	}
	return out
}
