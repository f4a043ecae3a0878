package web

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// given collects the orders that came through.
type given struct {
	orders []string
	err    error
}

func (g *given) page() *PageOrders {
	return &PageOrders{
		Backends: func() []string { return []string{"api/192.0.2.21:6443", `<b>"&/192.0.2.22:6443`} },
		Nodes:    func() []string { return []string{"n1", "n2"} },
		Give: func(ctx context.Context, user string, o PageOrder) (string, error) {
			if _, ok := ctx.Deadline(); !ok {
				return "", errors.New("an order takes for ever")
			}
			g.orders = append(g.orders, fmt.Sprint(user, " ", o.Do, " ", o.To, " ", o.Weight))
			return "said <so>", g.err
		},
	}
}

func operated(t *testing.T, change func(*AdminConfig)) (http.Handler, *given) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte("pw"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	g := new(given)
	return site(t, func(c *AdminConfig) {
		c.Users, c.Token = map[string]string{"op": string(hash), "other": string(hash)}, "0123456789abcdef"
		c.Orders = g.page()
		if change != nil {
			change(c)
		}
	}), g
}

func as(user string) map[string]string {
	return map[string]string{
		"Authorization":  "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":pw")),
		"Content-Type":   "application/x-www-form-urlencoded",
		"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:10001",
	}
}

var hiddenToken = regexp.MustCompile(`name="token" value="([^"]+)"`)

// tokenOf is the signature in a form.
func tokenOf(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	m := hiddenToken.FindStringSubmatch(w.Body.String())
	if m == nil {
		t.Fatalf("%d, and no form: %s", w.Code, w.Body)
	}
	return m[1]
}

func send(h http.Handler, user string, fields ...string) *httptest.ResponseRecorder {
	v := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		v.Set(fields[i], fields[i+1])
	}
	return ask{method: http.MethodPost, path: "/operate", header: as(user), body: v.Encode()}.of(h)
}

// TestOperate goes the whole way without a script: form, confirmation, order.
func TestOperate(t *testing.T) {
	h, g := operated(t, nil)
	if w := (ask{path: "/", header: as("op")}).of(h); !strings.Contains(w.Body.String(), `href="operate"`) {
		t.Error("the page does not lead to its orders")
	}
	for _, tt := range []struct{ do, to, weight, asks, want string }{
		{"drain", "api/192.0.2.21:6443", "7", "drain api/192.0.2.21:6443?", "op drain api/192.0.2.21:6443 "},
		{"weight", "api/192.0.2.21:6443", "7", "becomes 7.", "op weight api/192.0.2.21:6443 7"},
		{"disable", `<b>"&/192.0.2.22:6443`, "", "disable &lt;b&gt;", `op disable <b>"&/192.0.2.22:6443 `},
		{"enable", "api/192.0.2.21:6443", "", "enable api/192.0.2.21:6443?", "op enable api/192.0.2.21:6443 "},
		{"drain-node", "n2", "", "drain n2?", "op drain-node n2 "},
		{"transfer", "n1", "", "transfer n1?", "op transfer n1 "},
		{"unpin", "n1", "", "unpin?", "op unpin  "},
	} {
		first := ask{path: "/operate", header: as("op")}.of(h)
		if first.Code != http.StatusOK ||
			!strings.Contains(first.Header().Get("Content-Security-Policy"), "form-action 'self'") {
			t.Fatalf("%d %v", first.Code, first.Header())
		}
		before := len(g.orders)
		confirm := send(h, "op", "token", tokenOf(t, first), "do", tt.do, "to", tt.to, "weight", tt.weight)
		if confirm.Code != http.StatusOK || !strings.Contains(confirm.Body.String(), tt.asks) || len(g.orders) != before {
			t.Fatalf("%s: %d, lacks %q, or was not asked about: %v\n%s", tt.do, confirm.Code, tt.asks, g.orders, confirm.Body)
		}
		done := send(h, "op", "token", tokenOf(t, confirm), "do", tt.do, "to", tt.to, "weight", tt.weight, "confirmed", "yes")
		if done.Code != http.StatusOK || !strings.Contains(done.Body.String(), "said &lt;so&gt;") {
			t.Errorf("%s: %d %s", tt.do, done.Code, done.Body)
		}
		if len(g.orders) != before+1 || g.orders[before] != tt.want {
			t.Errorf("orders %q, want %q", g.orders, tt.want)
		}
	}
	g.err = errors.New("no majority")
	confirm := send(h, "op", "token", tokenOf(t, ask{path: "/operate", header: as("op")}.of(h)), "do", "pin", "to", "n1")
	failed := send(h, "op", "token", tokenOf(t, confirm), "do", "pin", "to", "n1", "confirmed", "yes")
	if failed.Code != http.StatusConflict || !strings.Contains(failed.Body.String(), "no majority") {
		t.Errorf("%d %s", failed.Code, failed.Body)
	}
}

// TestOperateRefuses: nothing is done but what a user has confirmed on this page.
func TestOperateRefuses(t *testing.T) {
	h, g := operated(t, nil)
	form := tokenOf(t, ask{path: "/operate", header: as("op")}.of(h))
	confirmed := tokenOf(t, send(h, "op", "token", form, "do", "drain", "to", "api/192.0.2.21:6443"))
	drain := func(more ...string) []string {
		return append([]string{"do", "drain", "to", "api/192.0.2.21:6443", "confirmed", "yes"}, more...)
	}
	for name, fields := range map[string][]string{
		"no signature":             drain(),
		"the form's signature":     drain("token", form),
		"a made-up signature":      drain("token", "99999999999."+strings.Repeat("0", 64)),
		"another order's":          {"do", "disable", "to", "api/192.0.2.21:6443", "confirmed", "yes", "token", confirmed},
		"another backend's":        {"do", "drain", "to", `<b>"&/192.0.2.22:6443`, "confirmed", "yes", "token", confirmed},
		"an old one":               drain("token", "1."+strings.Repeat("0", 64)),
		"what is not there":        {"do", "drain", "to", "api/192.0.2.99:6443", "token", form},
		"a node that is a backend": {"do", "drain-node", "to", "api/192.0.2.21:6443", "token", form},
		"no such order":            {"do", "remove", "to", "n1", "token", form},
		"a weight that is none":    {"do", "weight", "to", "api/192.0.2.21:6443", "weight", "257", "token", form},
	} {
		if w := send(h, "op", fields...); w.Code != http.StatusForbidden && w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	if w := send(h, "other", drain("token", confirmed)...); w.Code != http.StatusForbidden {
		t.Errorf("another user's form: %d", w.Code)
	}
	body := url.Values{"do": {"drain"}, "to": {"api/192.0.2.21:6443"}, "confirmed": {"yes"}, "token": {confirmed}}.Encode()
	for name, change := range map[string]func(map[string]string){
		"another site, by Sec-Fetch-Site":  func(h map[string]string) { h["Sec-Fetch-Site"] = "cross-site" },
		"another port of the same machine": func(h map[string]string) { h["Sec-Fetch-Site"] = "same-site" },
		"another site, by Origin": func(h map[string]string) {
			delete(h, "Sec-Fetch-Site")
			h["Origin"] = "http://evil.example"
		},
		"nobody":            func(h map[string]string) { delete(h, "Authorization") },
		"a wrong password":  func(h map[string]string) { h["Authorization"] = "Basic b3A6eA==" },
		"who has the token": func(h map[string]string) { h["Authorization"] = "Bearer 0123456789abcdef" },
	} {
		header := as("op")
		change(header)
		w := ask{method: http.MethodPost, path: "/operate", header: header, body: body}.of(h)
		if w.Code != http.StatusForbidden && w.Code != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, w.Code)
		}
	}
	much := body + "&x=" + strings.Repeat("x", maxForm)
	long := ask{method: http.MethodPost, path: "/operate", header: as("op"), body: much}.of(h)
	if long.Code != http.StatusBadRequest {
		t.Errorf("a long form: %d", long.Code)
	}
	elsewhere := ask{method: http.MethodPost, path: "/", header: as("op"), body: body}
	if w := elsewhere.of(h); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("a form for another path: %d", w.Code)
	}
	// In a link nothing is ordered.
	if w := (ask{path: "/operate?" + body, header: as("op")}).of(h); w.Code != http.StatusOK {
		t.Errorf("a link: %d", w.Code)
	}
	if len(g.orders) > 0 {
		t.Errorf("it was done: %q", g.orders)
	}
	if w := send(h, "op", drain("token", confirmed)...); w.Code != http.StatusOK || !slices.Equal(g.orders,
		[]string{"op drain api/192.0.2.21:6443 "}) {
		t.Errorf("the right one: %d, %q", w.Code, g.orders)
	}
}

// TestOperateIsOff: without the setting, without users, and at a unix socket nothing can be ordered.
func TestOperateIsOff(t *testing.T) {
	for name, change := range map[string]func(*AdminConfig){
		"off": func(c *AdminConfig) { c.Orders = nil }, "no users": func(c *AdminConfig) { c.Users, c.Token = nil, "" },
		"unix": func(c *AdminConfig) { c.Unix = true },
	} {
		h, g := operated(t, change)
		if w := (ask{path: "/operate", header: as("op")}).of(h); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", name, w.Code)
		}
		if w := send(h, "op", "do", "drain"); w.Code != http.StatusMethodNotAllowed || len(g.orders) > 0 {
			t.Errorf("%s: %d", name, w.Code)
		}
		if w := (ask{path: "/", header: as("op")}).of(h); strings.Contains(w.Body.String(), "operate") {
			t.Errorf("%s: the page leads to orders", name)
		}
	}
	h, _ := operated(t, func(c *AdminConfig) { c.Path = "/stats" })
	if w := (ask{path: "/stats/operate", header: as("op")}).of(h); w.Code != http.StatusOK {
		t.Errorf("below a path of its own: %d", w.Code)
	}
}
