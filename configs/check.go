package configs

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/balancer"
	"appliance/mask"
)

var checkTypes = []string{
	balancer.CheckTCP, balancer.CheckTLS, balancer.CheckHTTP, balancer.CheckHTTPS, balancer.CheckNone,
}

// talkingTypes are those that only load balancers' checks have.
var talkingTypes = []string{
	balancer.CheckExchange, balancer.CheckRedis, balancer.CheckSMTP, balancer.CheckMySQL, balancer.CheckPgSQL,
	balancer.CheckLDAP, balancer.CheckProgram,
}

// requestSettings are the keys below prefix that say what a check asks.
func requestSettings(prefix, flag string) []Setting {
	return []Setting{
		{Key: prefix + "type", Flag: flag, Type: String, Default: balancer.DefaultCheckType, Choices: checkTypes,
			Usage: "tcp: a connection opens; tls: and a handshake succeeds; " +
				"http, https: and a request is answered as expected; none: always healthy",
			Why: "https with path /readyz is how a kube-apiserver says early that it is about to stop"},
		{Key: prefix + "port", Type: Port,
			Usage: "the port that is checked",
			Why:   "the backend's own"},
		{Key: prefix + "method", Type: String, Default: balancer.DefaultCheckMethod,
			Choices: []string{"GET", "HEAD", "OPTIONS", "POST"},
			Usage:   "the method of the request (http, https)",
			Why:     "every server knows it"},
		{Key: prefix + "path", Type: String, Default: balancer.DefaultCheckPath,
			Usage: "the path of the request (http, https)",
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
			Why:   "200 alone: a server that is not ready yet also answers 401 or 403"},
		{Key: prefix + "expect.contains", Type: String,
			Usage: "a text that the body of the answer must contain (http, https)",
			Why:   "none: the status says it"},
		{Key: prefix + "expect.matches", Type: String,
			Usage: "a regular expression (RE2) that the body of the answer must match (http, https)",
			Why:   "none: the status says it"},
		{Key: prefix + "expect.absent", Type: String,
			Usage: "a text that the body of the answer must not contain (http, https)",
			Why:   "none: the status says it"},
		{Key: prefix + "expect.mismatches", Type: String,
			Usage: "a regular expression (RE2) that the body of the answer must not match (http, https)",
			Why:   "none: the status says it"},
		{Key: prefix + "tls.verify", Type: Bool,
			Usage: "verify the server's certificate with a CA (tls, https)",
			Why: "false, or true with caFile: a check asks whether the server serves, " +
				"and its clients verify it for themselves"},
		{Key: prefix + "tls.caFile", Type: Path,
			Usage: "the CA of the server's certificate (tls, https)",
			Why:   "the host's own CAs, if verify is true"},
		{Key: prefix + "tls.serverName", Type: String,
			Usage: "the name in the server's certificate, which the handshake asks for (tls, https)",
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

// talkSettings are the keys below prefix of the types that talk.
func talkSettings(prefix string) []Setting {
	return []Setting{
		{Key: prefix + "steps[].send", Type: String,
			Usage: "a text that is sent (exchange)",
			Why:   "none: a step sends or waits"},
		{Key: prefix + "steps[].sendHex", Type: String,
			Usage: "bytes that are sent, in hexadecimal (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "steps[].expect", Type: String,
			Usage: "a text that must be in what has come since the last send (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "steps[].expectHex", Type: String,
			Usage: "the same as bytes, in hexadecimal (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "steps[].matches", Type: String,
			Usage: "a regular expression (RE2) that it must match (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "steps[].absent", Type: String,
			Usage: "a text that must not be in what comes until the server closes the connection (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "steps[].absentHex", Type: String,
			Usage: "the same as bytes, in hexadecimal (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "steps[].mismatches", Type: String,
			Usage: "a regular expression (RE2) that it must not match until then (exchange)",
			Why:   "none, as send"},
		{Key: prefix + "exec[]", Type: List,
			Usage: "a program and its arguments; exit code 0 means that the server is healthy (program)",
			Why:   "none: a check needs no program"},
		{Key: prefix + "user", Type: String,
			Usage: "who logs in, without a password (mysql, pgsql), or who runs the program (program)",
			Why: "none: mysql's greeting is enough, and pgsql needs a name; " +
				"a program runs as nobody where this process may change users"},
		{Key: prefix + "helo", Type: String, Default: balancer.DefaultHello,
			Usage: "how the check introduces itself: HELO name or EHLO name (smtp)",
			Why:   "haproxy's; every server knows it"},
		{Key: prefix + "tls.on", Type: Bool, Default: "false",
			Usage: "talk over TLS from the first byte (exchange, redis, smtp, mysql, pgsql, ldap)",
			Why:   "the well-known ports of these protocols are in clear"},
	}
}

// checkSettings are all keys of a load balancer's check.
func checkSettings(prefix string) []Setting {
	all := requestSettings(prefix, "check")
	all[0].Choices = slices.Concat(checkTypes, talkingTypes)
	all[0].Usage += "; exchange: what is sent is answered as expected; " +
		"redis, smtp, mysql, pgsql, ldap: a server of that protocol answers; program: exec ends with 0"
	all = append(all, talkSettings(prefix)...)
	return append(all, []Setting{
		{Key: prefix + "sendProxy", Type: String, Choices: []string{"v1", "v2"},
			Usage: "begin the check with a PROXY header of this version that names no client (tls, http, https)",
			Why:   "none: only a server that waits for it answers then"},
		{Key: prefix + "inter", Type: Duration, Default: formatDuration(balancer.DefaultInter),
			Usage: "time between two checks of one backend",
			Why:   "with fall 2 a vanished server is out within about a second"},
		{Key: prefix + "fastinter", Type: Duration,
			Usage: "the same while a backend may be about to change, or after a connection failed",
			Why:   "a twentieth of inter, at least 50ms: doubts are cleared up soon"},
		{Key: prefix + "downinter", Type: Duration,
			Usage: "the same for a backend that is down",
			Why:   "inter: a server that comes back is wanted back"},
		{Key: prefix + "timeout", Type: Duration,
			Usage: "time for one check; at most inter for tcp and tls",
			Why: "inter for tcp and tls, four times inter for http and https: " +
				"a slow etcd can hold an apiserver's answer for a second; connection and handshake have inter at most"},
		{Key: prefix + "rise", Type: Int, Default: strconv.Itoa(balancer.DefaultRise),
			Usage: "successes in a row that make a backend healthy",
			Why:   "a server that is just starting may answer once and fall over"},
		{Key: prefix + "fall", Type: Int, Default: strconv.Itoa(balancer.DefaultFall),
			Usage: "failures in a row that make a backend unhealthy",
			Why:   "one lost packet is no reason"},
	}...)
}

// check reads a load balancer's check, whose keys begin with prefix.
func (b *builder) check(prefix string) balancer.Check {
	const shortest = 10 * time.Millisecond
	c := b.checkRequest(prefix)
	c.SendProxy = b.text(prefix + "sendProxy")
	switch {
	case c.Talks():
		b.talk(&c, prefix)
	case c.Type == balancer.CheckProgram:
		key := func(name string) string { return prefix + name }
		c.Exec, c.User = b.program(key("exec")), b.user(key, "exec")
		if len(c.Exec) == 0 {
			b.missing(key("exec"), "is missing; write exec: [/path/of/a/program]")
		}
	}
	c.Inter = b.duration(prefix+"inter", shortest, day)
	c.FastInter = b.optionalDuration(prefix+"fastinter", shortest, day)
	c.DownInter = b.optionalDuration(prefix+"downinter", shortest, day)
	c.Timeout = b.optionalDuration(prefix+"timeout", time.Millisecond, day)
	c.Rise = b.int(prefix+"rise", 1, 1000)
	c.Fall = b.int(prefix+"fall", 1, 1000)
	if c.Timeout == 0 {
		c.Timeout = c.DefaultTimeout()
		b.show(prefix+"timeout", formatDuration(c.Timeout), Origin{})
	}
	b.limitRuns(c, prefix)
	inter := formatDuration(c.Inter)
	if c.Timeout > c.Inter && !c.Requests() && !c.Talks() {
		b.bad(prefix+"timeout", "%s is longer than inter, %s, which only checks may be that wait for an answer; "+
			"write at most %s", formatDuration(c.Timeout), inter, inter)
	}
	if c.FastInter > c.Inter {
		b.bad(prefix+"fastinter", "%s is longer than inter, %s, and is there to be shorter; write less, or remove it",
			formatDuration(c.FastInter), inter)
	}
	if slowest := max(c.Inter, c.Timeout); time.Duration(c.Fall) > day/max(slowest, 1) {
		b.bad(prefix+"fall", "%d failures %s apart take longer than a day to be believed; write less",
			c.Fall, formatDuration(slowest))
	}
	if slowest := max(c.Inter, c.DownInter); time.Duration(c.Rise) > day/max(slowest, 1) {
		b.bad(prefix+"rise", "%d successes %s apart take longer than a day to be believed; write less",
			c.Rise, formatDuration(slowest))
	}
	return c
}

// limitRuns refuses programs that run too often.
func (b *builder) limitRuns(c balancer.Check, prefix string) {
	if c.Type != balancer.CheckProgram {
		return
	}
	for _, one := range []struct {
		name  string
		inter time.Duration
	}{{"inter", c.Inter}, {"fastinter", c.FastInter}, {"downinter", c.DownInter}} {
		if one.inter > 0 && one.inter < balancer.MinProgramInter {
			b.bad(prefix+one.name, "%s is too often for a program, each run of which is a process more; write %s: 5s",
				formatDuration(one.inter), one.name)
		}
	}
}

// ownCheckSettings are the keys of a backend's own check: those of checkSettings, and address.
func ownCheckSettings(prefix string) []Setting {
	list := append(checkSettings(prefix), Setting{Key: prefix + "address", Type: String,
		Usage: "the address that is checked in place of the backend's",
		Why:   "the backend's own"})
	for i := range list {
		list[i].Flag = ""
	}
	return list
}

// ownChecks are the settings of a backend's own check, without what is before their names.
var ownChecks = ownCheckSettings("")

// inheritedByAll are the keys that a backend's own check takes from its load balancer's whatever its type is.
var inheritedByAll = []string{"inter", "fastinter", "downinter", "rise", "fall"}

// ownCheck reads a backend's own check, or nil if it has none. What it leaves unsaid is what usual says, the prefix of
// the load balancer's check; if it has a type of its own, only how often.
func (b *builder) ownCheck(prefix, usual string) *balancer.Check {
	if _, ok := b.origins[strings.TrimSuffix(prefix, ".")]; !ok || b.checkUnsure {
		return nil
	}
	own, ok := b.values[prefix+"type"]
	b.inherit(prefix, usual, !ok || own.value == b.get(usual+"type").value)
	c := b.check(prefix)
	if value := b.get(prefix + "address").value; value != "" {
		if a, ok := b.addr(prefix+"address", value); ok {
			c.Address = a
			b.show(prefix+"address", a.String(), b.origin(prefix+"address"))
		}
	}
	return &c
}

// inherit gives the check at prefix what it leaves unsaid: what the one at usual says.
func (b *builder) inherit(prefix, usual string, sameType bool) {
	own := b.lists[prefix+"steps"] > 0
	for _, s := range ownChecks {
		if _, field, ok := strings.Cut(s.Key, "steps[]."); ok && sameType && !own {
			b.lists[prefix+"steps"] = b.lists[usual+"steps"]
			for i := range b.lists[usual+"steps"] {
				at := fmt.Sprintf("steps[%d].%s", i, field)
				if v, ok := b.values[usual+at]; ok {
					b.values[prefix+at] = v
				}
			}
			continue
		}
		name, isList := strings.CutSuffix(s.Key, "[]")
		if !sameType && !slices.Contains(inheritedByAll, name) {
			continue
		}
		if v, ok := b.values[usual+name]; ok && !isList {
			if _, own := b.values[prefix+name]; !own {
				b.values[prefix+name] = v
			}
		}
		if n := b.lists[usual+name]; n > 0 && b.lists[prefix+name] == 0 {
			b.lists[prefix+name] = n
			for i := range n {
				at := fmt.Sprintf("%s[%d]", name, i)
				b.values[prefix+at] = b.values[usual+at]
			}
		}
	}
}

// maxSteps and maxStep bound a conversation: steps, and the bytes of one.
const (
	maxSteps = 50
	maxStep  = 4096
)

// talk reads the keys of talkSettings.
func (b *builder) talk(c *balancer.Check, prefix string) {
	if b.bool(prefix + "tls.on") {
		c.TLS = b.checkTLS(prefix)
		c.TLS.On = true
	} else {
		for _, name := range []string{"verify", "caFile", "serverName", "pin", "certFile", "keyFile"} {
			if b.isWritten(prefix + "tls." + name) {
				b.bad(prefix+"tls."+name, "has no effect in clear; write tls: {on: true} beside it, or remove it")
			}
		}
	}
	switch c.Type {
	case balancer.CheckExchange:
		c.Steps = b.steps(prefix + "steps")
	case balancer.CheckMySQL, balancer.CheckPgSQL:
		if c.User = b.text(prefix + "user"); len(c.User) > 64 || printable(c.User) != c.User && c.User != "" {
			b.bad(prefix+"user", "%s is not a user's name; write one of at most 64 printable characters", printable(c.User))
		}
		if c.User == "" && c.Type == balancer.CheckPgSQL {
			b.bad(prefix+"user", "is missing, and PostgreSQL begins with a name; write one, which need not exist")
		}
	case balancer.CheckSMTP:
		c.Hello = b.text(prefix + "helo")
		verb, name, _ := strings.Cut(c.Hello, " ")
		if verb != "HELO" && verb != "EHLO" || name == "" || invalidIn(name, "") || len(name) > 255 {
			b.bad(prefix+"helo", "%s is no greeting; write HELO name or EHLO name", printable(c.Hello))
		}
	}
}

// steps reads a conversation.
func (b *builder) steps(key string) (steps []balancer.CheckStep) {
	if n := b.lists[key]; n == 0 || n > maxSteps {
		b.bad(key, "has %d steps; write from 1 to %d, such as steps: [{send: \"PING\\r\\n\"}, {expect: PONG}]", n, maxSteps)
		return nil
	}
	for at := range b.elements(key) {
		var one balancer.CheckStep
		said := 0
		read := func(name string, into *string) {
			c := b.get(at + "." + name)
			if c.value == "" {
				return
			}
			said++
			b.show(at+"."+name, c.value, c.origin)
			*into = c.value
			if strings.HasSuffix(name, "Hex") {
				bytes, err := hex.DecodeString(strings.ReplaceAll(c.value, " ", ""))
				if err != nil {
					b.bad(at+"."+name, "%s is not hexadecimal; write two digits for each byte", printable(c.value))
				}
				*into = string(bytes)
			}
			if len(*into) > maxStep {
				b.bad(at+"."+name, "has %d bytes; write %d at most", len(*into), maxStep)
			}
		}
		read("send", &one.Send)
		read("sendHex", &one.Send)
		read("expect", &one.Expect)
		read("expectHex", &one.Expect)
		read("matches", &one.Matches)
		read("absent", &one.Absent)
		read("absentHex", &one.Absent)
		read("mismatches", &one.Mismatches)
		if said != 1 {
			b.bad(at, "says %d things; write one of send, sendHex, expect, expectHex, matches, absent, absentHex and "+
				"mismatches in each step", said)
		}
		for name, pattern := range map[string]string{"matches": one.Matches, "mismatches": one.Mismatches} {
			if _, err := regexp.Compile(pattern); err != nil { // one of the two is empty
				b.bad(at+"."+name, "%s is not a regular expression of RE2 (%s); correct it, or write expect or absent",
					printable(pattern), printable(err.Error()))
			}
		}
		steps = append(steps, one)
	}
	return steps
}

// checkRequest reads what a check asks: the keys of requestSettings.
func (b *builder) checkRequest(prefix string) balancer.Check {
	c := balancer.Check{Type: b.text(prefix + "type")}
	b.rejectIrrelevant(prefix, c.Type)
	if c.Port = b.port(prefix+"port", true); c.Port != 0 {
		b.show(prefix+"port", strconv.Itoa(int(c.Port)), b.origin(prefix+"port"))
	}
	if c.Type == balancer.CheckTLS || c.Type == balancer.CheckHTTPS {
		c.TLS = b.checkTLS(prefix)
	}
	if !c.Requests() {
		return c
	}
	c.Method = b.text(prefix + "method")
	c.Path = b.text(prefix + "path")
	if !strings.HasPrefix(c.Path, "/") || invalidIn(c.Path, "#") {
		b.bad(prefix+"path", "%s is not the path of a page; "+
			"begin it with / and write other characters than letters and digits as in a URL", printable(c.Path))
	}
	if c.Host = b.text(prefix + "host"); invalidIn(c.Host, "/@#?") {
		b.bad(prefix+"host", "%s is not a host; write a name or an address, with or without :port", printable(c.Host))
	}
	c.Headers = b.headers(prefix + "headers")
	c.Expect = b.expect(prefix+"expect.", c.Method)
	if c.BearerTokenFile = b.path(prefix + "bearerTokenFile"); c.BearerTokenFile != "" {
		switch {
		case c.Type == balancer.CheckHTTP:
			b.bad(prefix+"bearerTokenFile", "would send the token in clear; write type: https")
		case !c.TLS.Verify && c.TLS.Pin == "":
			b.bad(prefix+"bearerTokenFile", "would give the token to whoever answers; "+
				"write tls: {caFile: ...} beside it, such as /etc/kubernetes/pki/ca.crt, or a tls.pin")
		}
	}
	return c
}

// invalidIn reports whether s has characters that are not printable ASCII, or one
// of those in reserved.
func invalidIn(s, reserved string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(reserved, r) })
}

// rejectIrrelevant refuses keys that a check of this type ignores.
func (b *builder) rejectIrrelevant(prefix, checkType string) {
	request := []string{"method", "path", "host", "headers", "bearerTokenFile", "expect"}
	timing := []string{"port", "address", "inter", "fastinter", "downinter", "timeout", "rise", "fall"}
	reject := func(names []string, remedy string) {
		for _, name := range names {
			if b.isWritten(prefix + name) {
				b.bad(prefix+name, "means nothing to a check of type %s; remove it, or write type: %s", checkType, remedy)
			}
		}
	}
	for _, of := range []struct {
		name  string
		types []string
	}{
		{"steps", []string{balancer.CheckExchange}}, {"helo", []string{balancer.CheckSMTP}},
		{"user", []string{balancer.CheckMySQL, balancer.CheckPgSQL, balancer.CheckProgram}},
		{"exec", []string{balancer.CheckProgram}},
		{"tls.on", []string{balancer.CheckExchange, balancer.CheckRedis, balancer.CheckSMTP, balancer.CheckLDAP,
			balancer.CheckMySQL, balancer.CheckPgSQL,
			// These take no tls at all.
			balancer.CheckTCP, balancer.CheckHTTP, balancer.CheckNone, balancer.CheckProgram}},
	} {
		if !slices.Contains(of.types, checkType) {
			reject([]string{of.name}, of.types[0])
		}
	}
	switch checkType {
	case balancer.CheckExchange, balancer.CheckRedis, balancer.CheckSMTP, balancer.CheckLDAP, balancer.CheckMySQL,
		balancer.CheckPgSQL:
		reject(request, balancer.CheckHTTPS)
	case balancer.CheckTCP, balancer.CheckProgram:
		reject(request, balancer.CheckHTTPS)
		reject([]string{"tls", "sendProxy"}, balancer.CheckTLS)
	case balancer.CheckTLS:
		reject(request, balancer.CheckHTTPS)
	case balancer.CheckHTTP:
		reject([]string{"tls"}, balancer.CheckHTTPS)
	case balancer.CheckNone:
		reject(timing, balancer.CheckHTTPS)
		reject(request, balancer.CheckHTTPS)
		reject([]string{"tls", "sendProxy"}, balancer.CheckHTTPS)
	}
}

// headerName is a token (RFC 9110, section 5.6.2).
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// headers reads the lines that the parser made of a mapping.
func (b *builder) headers(key string) []balancer.Header {
	var list []balancer.Header
	for key := range b.elements(key) {
		c := b.get(key)
		name, value, ok := strings.Cut(c.value, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok || !headerName.MatchString(name):
			b.bad(key, "%s is not a header; write name: value", printable(c.value))
			continue
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			b.bad(key, "%s has characters that a header cannot have; write printable ones", printable(c.value))
			continue
		case strings.EqualFold(name, "Host"):
			b.bad(key, "is a key of its own; write host: %s beside headers", printable(value))
			continue
		}
		line := name + ": " + value
		shown := mask.Text(line)
		if shown != line {
			shown = name + ": (secret)"
		}
		b.showMasked(key, shown, line, c.origin)
		list = append(list, balancer.Header{Name: name, Value: value})
	}
	return list
}

func (b *builder) expect(prefix, method string) balancer.Expect {
	e := balancer.Expect{
		Contains: b.text(prefix + "contains"), Matches: b.text(prefix + "matches"),
		Absent: b.text(prefix + "absent"), Mismatches: b.text(prefix + "mismatches"),
	}
	for key := range b.elements(prefix + "status") {
		value := b.get(key).value
		b.show(key, value, b.origin(key))
		from, to, isRange := strings.Cut(value, "-")
		if !isRange {
			to = from
		}
		first, ok1 := decimal(from)
		last, ok2 := decimal(to)
		if !ok1 || !ok2 || first < 200 || last > 599 || first > last {
			b.bad(key, "%s is no status of an answer; write a number from 200 to 599, or two such as 200-399",
				printable(value))
			continue
		}
		e.Status = append(e.Status, balancer.StatusRange{First: first, Last: last})
	}
	if len(e.Status) == 0 {
		e.Status = []balancer.StatusRange{{First: balancer.DefaultStatus, Last: balancer.DefaultStatus}}
		b.show(prefix+"status[0]", strconv.Itoa(balancer.DefaultStatus), Origin{})
	}
	for _, one := range [][3]string{{"matches", e.Matches, "contains"}, {"mismatches", e.Mismatches, "absent"}} {
		if _, err := regexp.Compile(one[1]); err != nil {
			b.bad(prefix+one[0], "%s is not a regular expression of RE2 (%s); correct it, or write %s",
				printable(one[1]), printable(err.Error()), one[2])
		}
	}
	for _, name := range []string{"contains", "matches", "absent", "mismatches"} {
		if b.get(prefix+name).value != "" && method == "HEAD" {
			b.bad(prefix+name, "is about a body, and HEAD asks for none; write method: GET")
		}
	}
	return e
}

func (b *builder) checkTLS(prefix string) balancer.TLSOptions {
	key := func(name string) string { return prefix + "tls." + name }
	t := balancer.TLSOptions{
		CAFile: b.path(key("caFile")), ServerName: b.text(key("serverName")), Pin: b.text(key("pin")),
		CertFile: b.path(key("certFile")), KeyFile: b.path(key("keyFile")),
	}
	if invalidIn(t.ServerName, "/") {
		b.bad(key("serverName"), "%s is not a name that a certificate has; write a host's name or address",
			printable(t.ServerName))
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
	if _, err := t.PinHash(); err != nil {
		b.bad(key("pin"), "%s is not a SHA-256 in base64, which has 44 characters; print it with `%s`",
			printable(t.Pin), balancer.PinCommand)
	}
	if (b.get(key("certFile")).value == "") != (b.get(key("keyFile")).value == "") {
		b.bad(key("certFile"), "and keyFile are needed together; write both")
	}
	return t
}
