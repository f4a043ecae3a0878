package convert

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"appliance/convert/draft"
)

// A checkWord is one key of a check, such as tls.verify, and its value in YAML.
type checkWord struct{ key, value string }

// checkWords are the keys of a check with something to say.
func checkWords(c draft.HealthCheck) (words []checkWord) {
	var f draft.Flow
	f.Word("type", c.Type)
	f.Span("inter", c.Inter)
	f.Span("fastinter", c.FastInter)
	f.Span("downinter", c.DownInter)
	f.Span("timeout", c.Timeout)
	f.Number("rise", c.Rise)
	f.Number("fall", c.Fall)
	f.Port("port", c.Port)
	if c.Addr.IsValid() {
		f.Word("address", c.Addr.String())
	}
	f.Word("sendProxy", c.SendProxy)
	if len(c.Steps) > 0 {
		f.Add("steps", list(c.Steps, stepFlow))
	}
	if len(c.Exec) > 0 {
		f.Add("exec", list(c.Exec, draft.Scalar))
	}
	f.Word("user", c.User)
	f.Word("helo", c.Helo)
	f.Word("method", c.Method)
	f.Word("path", c.Path)
	f.Word("host", c.Host)
	var headers draft.Flow
	for _, h := range c.Headers {
		headers.Add(draft.Scalar(h[0]), draft.Scalar(h[1]))
	}
	if len(headers) > 0 {
		f.Add("headers", headers.String())
	}
	if len(c.Status) > 0 {
		f.Add("expect.status", list(c.Status, draft.Scalar))
	}
	f.Word("expect.contains", c.Contains)
	f.Word("expect.matches", c.Matches)
	f.Word("expect.absent", c.Absent)
	f.Word("expect.mismatches", c.Mismatches)
	if c.OverTLS {
		f.Add("tls.on", "true")
	}
	if c.Verify != "" {
		f.Add("tls.verify", c.Verify)
	}
	f.Word("tls.caFile", c.CAFile)
	f.Word("tls.serverName", c.ServerName)
	f.Word("tls.certFile", c.CertFile)
	f.Word("tls.keyFile", c.KeyFile)
	for _, pair := range f {
		key, value, _ := strings.Cut(pair, ": ")
		words = append(words, checkWord{key, value})
	}
	return words
}

// stepFlow is one step of a conversation, in hexadecimal if it is no text.
func stepFlow(one draft.SpokenStep) string {
	var f draft.Flow
	isOdd := func(r rune) bool { return !strconv.IsPrint(r) && !strings.ContainsRune("\r\n\t", r) }
	isPattern := one.Key == "matches" || one.Key == "mismatches"
	if !isPattern && (!utf8.ValidString(one.Bytes) || strings.ContainsFunc(one.Bytes, isOdd)) {
		f.Add(one.Key+"Hex", draft.Scalar(hex.EncodeToString([]byte(one.Bytes))))
	} else {
		f.Word(one.Key, one.Bytes)
	}
	return f.String()
}

// flowOf writes words as a mapping, with tls.verify as tls: {verify: ...}.
func flowOf(words []checkWord) (f draft.Flow) {
	groups := make(map[string]draft.Flow)
	for _, w := range words {
		if group, name, isDeep := strings.Cut(w.key, "."); isDeep {
			inner := groups[group]
			inner.Add(name, w.value)
			groups[group] = inner
		}
	}
	for _, w := range words {
		group, _, isDeep := strings.Cut(w.key, ".")
		if !isDeep {
			f.Add(w.key, w.value)
		} else if inner := groups[group]; len(inner) > 0 { // where its first key stands
			f.Add(group, inner.String())
			delete(groups, group)
		}
	}
	return f
}

// inherited are the keys that a server's own check takes from its load balancer's whatever its type is.
var inherited = []string{"inter", "fastinter", "downinter", "rise", "fall"}

// checkDifference is what a server's own check has to say beside usual, its load balancer's, to become own.
func checkDifference(usual, own draft.HealthCheck) draft.Flow {
	have := checkWords(usual)
	if own.Type == "none" && usual.Type != "none" {
		return flowOf([]checkWord{{"type", "none"}})
	}
	if own.Type != usual.Type {
		have = slices.DeleteFunc(have, func(w checkWord) bool { return !slices.Contains(inherited, w.key) })
	}
	want := checkWords(own)
	says := func(words []checkWord, key string) bool {
		return slices.ContainsFunc(words, func(w checkWord) bool { return w.key == key })
	}
	differs := slices.DeleteFunc(slices.Clone(want), func(w checkWord) bool { return slices.Contains(have, w) })
	for _, w := range have {
		if says(want, w.key) {
			continue
		}
		none := `""` // our loader's way to say: as without the key
		switch w.key {
		case "port":
			none = "0"
		case "tls.verify", "tls.on":
			none = "false"
		}
		differs = append(differs, checkWord{w.key, none})
	}
	return flowOf(differs)
}
