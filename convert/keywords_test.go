package convert_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"appliance/convert/draft"
	"appliance/convert/haproxy"
	"appliance/convert/keepalived"
	"appliance/convert/kubevip"
	"appliance/convert/nginx"
	"appliance/convert/syntax"
)

type statement = syntax.Statement

// TestKeywordsAreDocumented keeps the table of docs/convert.md equal to what the readers know.
func TestKeywordsAreDocumented(t *testing.T) {
	const page, begin = "../docs/convert.md", "<!-- keywords: go test ./convert -run Documented -update writes them -->\n"
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(data), begin)
	if !ok {
		t.Fatalf("%s has no line %q", page, begin)
	}
	golden(t, page, before+begin+keywordTables())
}

func keywordTables() string {
	var b strings.Builder
	for _, program := range []struct {
		name string
		list []draft.Keyword
	}{
		{"haproxy", haproxy.Keywords()}, {"keepalived", keepalived.Keywords()}, {"nginx", nginx.Keywords()},
		{"kube-vip 0.1", kubevip.Keywords()},
	} {
		fmt.Fprintf(&b, "\n### %s\n\n| where | keyword | what becomes of it | reason |\n|---|---|---|---|\n", program.name)
		for _, k := range program.list {
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s |\n", k.Block, k.Word, k.Fate, strings.ReplaceAll(k.Reason, "|", `\|`))
		}
	}
	return b.String()
}

// TestCarriedKeywordsAreKnown gives each keyword that is said to be carried to its reader, which must know it.
func TestCarriedKeywordsAreKnown(t *testing.T) {
	blocks := map[string]string{ // what stands around a line of the block
		"defaults, frontend, backend, listen": "listen a\n%s x\n", "option": "listen a\noption %s x\n",
		"vrrp_instance": "vrrp_instance a {\n%s x\n}\n", "vrrp_script": "vrrp_script a {\n%s x\n}\n",
		"virtual_server": "virtual_server 192.0.2.10 80 {\n%s x\n}\n",
		"real_server":    "virtual_server 192.0.2.10 80 {\nreal_server 192.0.2.1 80 {\n%s x\n}\n}\n",
		"TCP_CHECK, HTTP_GET, SSL_GET, SMTP_CHECK": "virtual_server 192.0.2.10 80 {\n" +
			"real_server 192.0.2.1 80 {\nHTTP_GET {\n%s x\n}\n" +
			"}\n}\n",
		"stream, server": "stream { server { %s x; } }", "upstream": "stream { upstream a { %s x; } }",
	}
	more := map[string]string{
		"http-check": "send", "tcp-check": "connect", "option": "tcpka", "tcp-request": "inspect-delay 1s",
		"timeout": "connect 1s",
	}
	checked := 0
	for _, program := range []struct {
		parse func(string, []byte) ([]statement, error)
		read  func(*draft.Draft, []statement) error
		list  []draft.Keyword
	}{
		{haproxy.Grammar.Parse, haproxy.Read, haproxy.Keywords()},
		{keepalived.Grammar.Parse, keepalived.Read, keepalived.Keywords()},
		{nginx.Grammar.Parse, nginx.Read, nginx.Keywords()},
	} {
		for _, k := range program.list {
			around, ok := blocks[k.Block]
			if !ok || k.Fate != draft.Carried {
				continue
			}
			checked++
			list, err := program.parse("f", fmt.Appendf(nil, around, k.Word+" "+more[k.Word]))
			if err != nil {
				t.Fatal(err)
			}
			d := draft.New()
			if err := program.read(d, list); err != nil {
				t.Fatal(err)
			}
			for _, n := range d.Notes {
				if strings.HasSuffix(n.String(), ": "+draft.IsUnknown) || strings.HasSuffix(n.String(), ": is not there") {
					t.Errorf("%s: %s", k.Block, n)
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d keywords were tried", checked)
	}
}
