package configs

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A Check says how a backend's health is found out.
type Check struct {
	Type string
	// FastInter and DownInter are zero where Inter or the balancer decides.
	Inter, FastInter, DownInter time.Duration
	Timeout                     time.Duration
	Rise, Fall                  int
	// Port is zero where it is the backend's own.
	Port               uint16
	Method, Path, Host string
	Headers            []Header
	BearerTokenFile    string
	Expect             Expect
	TLS                CheckTLS
}

// A Header is one line of a check's request.
type Header struct{ Name, Value string }

// Expect is what a healthy server answers.
type Expect struct {
	Status            []StatusRange
	Contains, Matches string
}

// A StatusRange is one code, or all from the first to the last.
type StatusRange struct{ First, Last int }

// CheckTLS says whom a check trusts and as whom it comes.
type CheckTLS struct {
	Verify                  bool
	CAFile, ServerName, Pin string
	CertFile, KeyFile       string
}

// What a check without keys of its own asks: every kube-apiserver knows the
// answer, and says early that it is about to stop.
const (
	checkTCP   = "tcp"
	checkTLS   = "tls"
	checkHTTP  = "http"
	checkHTTPS = "https"
	checkNone  = "none"
)

// probeSettings are the keys that say what a check asks, below prefix.
func probeSettings(prefix, flag string) []Setting {
	return []Setting{
		{Key: prefix + "type", Flag: flag, Type: String, Default: checkHTTPS, Choices: checks,
			Usage: "tcp: a connection opens; tls: and a handshake succeeds; http, https: and a request is answered well; none: always healthy",
			Why:   "https with path /readyz is how a kube-apiserver says early that it is about to stop"},
		{Key: prefix + "port", Type: Port,
			Usage: "the port that is checked",
			Why:   "the backend's own"},
		{Key: prefix + "method", Type: String, Default: "GET", Choices: []string{"GET", "HEAD", "OPTIONS", "POST"},
			Usage: "the method of the request (http, https)",
			Why:   "every server knows it"},
		{Key: prefix + "path", Type: String, Default: "/readyz",
			Usage: "the page that is asked for (http, https)",
			Why:   "kube-apiserver's; where it fails and /livez does not, the server is drained"},
		{Key: prefix + "host", Type: String,
			Usage: "the Host of the request (http, https)",
			Why:   "the backend's address"},
		{Key: prefix + "headers[]", Type: Map,
			Usage: "further headers of the request (http, https)",
			Why:   "none are needed"},
		{Key: prefix + "bearerTokenFile", Type: Path,
			Usage: "a file whose content is sent as bearer token, read again when it changes (https)",
			Why:   "none: kube-apiserver shows /readyz to everybody"},
		{Key: prefix + "expect.status[]", Type: List,
			Usage: "the statuses of a healthy server, as 200 or 200-399 (http, https)",
			Why:   "200 alone: 401 and 403 are what a server says that is not ready yet"},
		{Key: prefix + "expect.contains", Type: String,
			Usage: "a text that the answer's body has to contain (http, https)",
			Why:   "none: the status says it"},
		{Key: prefix + "expect.matches", Type: String,
			Usage: "a regular expression (RE2) that the answer's body has to match (http, https)",
			Why:   "none: the status says it"},
		{Key: prefix + "tls.verify", Type: Bool,
			Usage: "hold the server's certificate against a CA (tls, https)",
			Why:   "false, or true with caFile: a check asks whether the server serves, and its clients verify it for themselves"},
		{Key: prefix + "tls.caFile", Type: Path,
			Usage: "the CA of the server's certificate (tls, https)",
			Why:   "the host's own CAs, if verify is true"},
		{Key: prefix + "tls.serverName", Type: String,
			Usage: "the name in the server's certificate, and the one asked for (tls, https)",
			Why:   "the backend's address"},
		{Key: prefix + "tls.pin", Type: String,
			Usage: "SHA-256 of the server's public key in base64 (tls, https)",
			Why:   "none: it changes with the key"},
		{Key: prefix + "tls.certFile", Type: Path,
			Usage: "a client certificate for the check (tls, https)",
			Why:   "none: kube-apiserver asks for none there"},
		{Key: prefix + "tls.keyFile", Type: Path,
			Usage: "the key of that certificate",
			Why:   "none, as tls.certFile"},
	}
}

// checkSettings are all keys of a load balancer's check.
func checkSettings(prefix string) []Setting {
	return append(probeSettings(prefix, "check"), []Setting{
		{Key: prefix + "inter", Type: Duration, Default: "500ms",
			Usage: "time between two checks of one backend",
			Why:   "with fall 2 a vanished server is out within about a second"},
		{Key: prefix + "fastinter", Type: Duration,
			Usage: "the same while a backend is about to change, or after a connection failed",
			Why:   "a twentieth of inter, 50ms at least: what is in doubt is soon known"},
		{Key: prefix + "downinter", Type: Duration,
			Usage: "the same for a backend that is down",
			Why:   "inter: who comes back is wanted back"},
		{Key: prefix + "timeout", Type: Duration,
			Usage: "patience of one check; at most inter for tcp and tls",
			Why:   "inter for tcp and tls, four times inter for http and https: a slow etcd can hold an apiserver's answer for a second; connection and handshake have inter at most"},
		{Key: prefix + "rise", Type: Int, Default: "2",
			Usage: "successes in a row that make a backend healthy",
			Why:   "a server that is just starting may answer once and fall over"},
		{Key: prefix + "fall", Type: Int, Default: "2",
			Usage: "failures in a row that make a backend unhealthy",
			Why:   "one lost packet is no reason"},
	}...)
}

// check reads a load balancer's check, whose keys begin with prefix.
func (b *builder) check(prefix string) Check {
	c := b.probe(prefix)
	c.Inter = b.duration(prefix+"inter", 10*time.Millisecond, 24*time.Hour)
	c.FastInter = b.optional(prefix+"fastinter", 10*time.Millisecond, 24*time.Hour)
	c.DownInter = b.optional(prefix+"downinter", 10*time.Millisecond, 24*time.Hour)
	c.Timeout = b.optional(prefix+"timeout", time.Millisecond, 24*time.Hour)
	c.Rise = b.int(prefix+"rise", 1, 1000)
	c.Fall = b.int(prefix+"fall", 1, 1000)
	asks := c.Type == checkHTTP || c.Type == checkHTTPS
	if c.Timeout == 0 {
		if c.Timeout = c.Inter; asks {
			c.Timeout = min(4*c.Inter, 24*time.Hour)
		}
		b.show(prefix+"timeout", short(c.Timeout), Origin{})
	}
	if c.Timeout > c.Inter && !asks {
		b.bad(prefix+"timeout", "%s is longer than inter, %s, which only http and https may be that wait for an answer; write at most %s",
			short(c.Timeout), short(c.Inter), short(c.Inter))
	}
	if c.FastInter > c.Inter {
		b.bad(prefix+"fastinter", "%s is longer than inter, %s, and is there to be shorter; write less, or remove it", short(c.FastInter), short(c.Inter))
	}
	const day = 24 * time.Hour
	if slowest := max(c.Inter, c.Timeout); time.Duration(c.Fall) > day/max(slowest, 1) {
		b.bad(prefix+"fall", "%d failures %s apart take longer than a day to be believed; write less", c.Fall, short(slowest))
	}
	if slowest := max(c.Inter, c.DownInter); time.Duration(c.Rise) > day/max(slowest, 1) {
		b.bad(prefix+"rise", "%d successes %s apart take longer than a day to be believed; write less", c.Rise, short(slowest))
	}
	return c
}

// optional reads a duration that may be left out, which is zero.
func (b *builder) optional(key string, low, high time.Duration) time.Duration {
	if b.get(key).value == "" {
		return 0
	}
	return b.duration(key, low, high)
}

// probe reads what a check asks.
func (b *builder) probe(prefix string) Check {
	c := Check{Type: b.text(prefix + "type")}
	b.irrelevant(prefix, c.Type)
	if c.Port = b.port(prefix+"port", true); c.Port != 0 {
		b.show(prefix+"port", strconv.Itoa(int(c.Port)), b.at(prefix+"port"))
	}
	if c.Type == checkTLS || c.Type == checkHTTPS {
		c.TLS = b.checkTLS(prefix)
	}
	if c.Type != checkHTTP && c.Type != checkHTTPS {
		return c
	}
	c.Method = b.text(prefix + "method")
	c.Path = b.text(prefix + "path")
	if !strings.HasPrefix(c.Path, "/") || strings.ContainsFunc(c.Path, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }) {
		b.bad(prefix+"path", "%s is not the path of a page; begin it with / and write other characters than letters and digits as in a URL", printable(c.Path))
	}
	if c.Host = b.text(prefix + "host"); strings.ContainsFunc(c.Host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/@#?", r) }) {
		b.bad(prefix+"host", "%s is not a host; write a name or an address, with or without :port", printable(c.Host))
	}
	c.Headers = b.headers(prefix + "headers")
	c.Expect = b.expect(prefix+"expect.", c.Method)
	if c.BearerTokenFile = b.path(prefix + "bearerTokenFile"); c.BearerTokenFile != "" {
		switch {
		case c.Type == checkHTTP:
			b.bad(prefix+"bearerTokenFile", "would send the token in clear; write type: https")
		case !c.TLS.Verify && c.TLS.Pin == "":
			b.bad(prefix+"bearerTokenFile", "would give the token to whoever answers; write tls: {caFile: ...} beside it, such as /etc/kubernetes/pki/ca.crt, or a tls.pin")
		}
	}
	return c
}

// irrelevant refuses keys that a check of this type would never look at.
func (b *builder) irrelevant(prefix, kind string) {
	var request, trust []string
	for _, name := range []string{"method", "path", "host", "headers", "bearerTokenFile", "expect"} {
		request = append(request, prefix+name)
	}
	trust = append(trust, prefix+"tls")
	refuse := func(keys []string, remedy string) {
		for _, key := range keys {
			if b.has(key) {
				b.bad(key, "means nothing to a check of type %s; remove it, or write type: %s", kind, remedy)
			}
		}
	}
	switch kind {
	case checkTCP:
		refuse(request, "https")
		refuse(trust, "tls")
	case checkTLS:
		refuse(request, "https")
	case checkHTTP:
		refuse(trust, "https")
	case checkNone:
		var all []string
		for _, name := range []string{"port", "inter", "fastinter", "downinter", "timeout", "rise", "fall"} {
			all = append(all, prefix+name)
		}
		refuse(append(append(all, request...), trust...), "https")
	}
}

// token is the name of a header (RFC 9110, section 5.6.2).
var token = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// headers reads the lines that the parser made of a mapping.
func (b *builder) headers(key string) []Header {
	var list []Header
	for i := range b.lists[key] {
		key := fmt.Sprintf("%s[%d]", key, i)
		c := b.get(key)
		name, value, ok := strings.Cut(c.value, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok || !token.MatchString(name):
			b.bad(key, "%s is not a header; write name: value", printable(c.value))
			continue
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			b.bad(key, "%s has characters that a header cannot have; write printable ones", printable(c.value))
			continue
		case strings.EqualFold(name, "Host"):
			b.bad(key, "is a key of its own; write host: %s beside headers", printable(value))
			continue
		}
		shown := name + ": " + value
		if strings.EqualFold(name, "Authorization") || strings.EqualFold(name, "Cookie") {
			shown = name + ": (secret)"
		}
		b.show(key, shown, c.origin)
		list = append(list, Header{name, value})
	}
	return list
}

func (b *builder) expect(prefix, method string) Expect {
	e := Expect{Contains: b.text(prefix + "contains"), Matches: b.text(prefix + "matches")}
	for i := range b.lists[prefix+"status"] {
		key := fmt.Sprintf("%sstatus[%d]", prefix, i)
		value := b.get(key).value
		b.show(key, value, b.at(key))
		from, to, isRange := strings.Cut(value, "-")
		if !isRange {
			to = from
		}
		first, ok1 := decimal(from)
		last, ok2 := decimal(to)
		if !ok1 || !ok2 || first < 200 || last > 599 || first > last {
			b.bad(key, "%s is no status of an answer; write a number from 200 to 599, or two such as 200-399", printable(value))
			continue
		}
		e.Status = append(e.Status, StatusRange{first, last})
	}
	if len(e.Status) == 0 {
		e.Status = []StatusRange{{200, 200}}
		b.show(prefix+"status[0]", "200", Origin{})
	}
	if _, err := regexp.Compile(e.Matches); err != nil {
		b.bad(prefix+"matches", "%s is not a regular expression of RE2 (%s); correct it, or write contains", printable(e.Matches), printable(err.Error()))
	}
	for _, name := range []string{"contains", "matches"} {
		if b.get(prefix+name).value != "" && method == "HEAD" {
			b.bad(prefix+name, "is about a body, and HEAD asks for none; write method: GET")
		}
	}
	return e
}

func (b *builder) checkTLS(prefix string) CheckTLS {
	key := func(name string) string { return prefix + "tls." + name }
	t := CheckTLS{
		CAFile: b.path(key("caFile")), ServerName: b.text(key("serverName")), Pin: b.text(key("pin")),
		CertFile: b.path(key("certFile")), KeyFile: b.path(key("keyFile")),
	}
	if strings.ContainsFunc(t.ServerName, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		b.bad(key("serverName"), "%s is not a name that a certificate has; write a host's name or address", printable(t.ServerName))
	}
	if b.get(key("verify")).value == "" {
		t.Verify = t.CAFile != ""
		b.show(key("verify"), strconv.FormatBool(t.Verify), Origin{})
	} else {
		t.Verify = b.bool(key("verify"))
	}
	if t.CAFile != "" && !t.Verify {
		b.bad(key("caFile"), "is of no use while verify is false; remove one of the two")
	}
	if hash, err := base64.StdEncoding.DecodeString(t.Pin); t.Pin != "" && (err != nil || len(hash) != 32) {
		b.bad(key("pin"), "%s is not a SHA-256 in base64, which has 44 characters; print it with `openssl x509 -pubkey -noout -in server.crt | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64`", printable(t.Pin))
	}
	if (b.get(key("certFile")).value == "") != (b.get(key("keyFile")).value == "") {
		b.bad(key("certFile"), "and keyFile are needed together; write both")
	}
	return t
}
