package page

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// pictures is where a person finds what the browser saw: APPLIANCE_SCREENSHOTS,
// which is docs/screenshots for those that the README shows, or a directory that
// git does not see.
func pictures() string {
	if dir := os.Getenv("APPLIANCE_SCREENSHOTS"); dir != "" {
		return dir
	}
	return "../../.cache/screenshots"
}

// TestPage kills the holder and a backend, and compares a node's page with what is on
// the wire.
func TestPage(t *testing.T) {
	b := openBrowser(t)
	g := serve(t, "")
	g.Ask(t.Context())
	holder, err := g.AwaitHolder(patient(t), func(int) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	viewer := (holder + 1) % 3
	b.requests(t)
	b.open(t, g.sites[viewer]+"/")
	b.await(t, "that it is live", `return document.getElementById("live-text").textContent === "live"`)
	b.await(t, "that all is well", `return document.querySelector(".verdict.good") !== null`)

	// The page says what is on the wire.
	addresses := b.text(t, "addresses")
	for i, vip := range g.VIPs {
		c, ok := g.Resolvers[i].Last()
		if !ok || !strings.Contains(addresses, vip.String()) || !strings.Contains(addresses, c.MAC) {
			t.Errorf("%s is answered for by %s, and the page says:\n%s", vip, c.MAC, addresses)
		}
	}
	if nodes := b.text(t, "nodes"); strings.Count(nodes, "ready") != 3 {
		t.Errorf("not every node is ready:\n%s", nodes)
	}
	b.await(t, "why it has this data plane",
		`return document.querySelector("#lb-0 details:not([hidden]) > summary") !== null`)
	b.eval(t, nil, `window.same = true; document.querySelector("#lb-0 details > summary").click()`)

	// The holder is killed: the page follows without being loaded anew.
	g.app.Kill(holder)
	dead := g.Nodes[holder].Name
	next, err := g.AwaitHolder(patient(t), func(i int) bool { return i != holder })
	if err != nil {
		t.Fatal(err)
	}
	b.await(t, "the new holder and its MAC", `
		return document.getElementById("verdict").innerText.includes(arguments[0]) &&
			document.getElementById("addresses").innerText.includes(arguments[1])`,
		g.Nodes[next].Name, g.Nodes[next].MAC().String())
	b.await(t, "why it moved", `return document.getElementById("history").innerText
		.includes("the process of " + arguments[0] + " ended")`, dead)
	b.await(t, "that the dead does not answer", `return document.getElementById("nodes").innerText.includes("no answer")`)
	var took bool
	b.eval(t, &took, `return /\d+(\.\d+)?(ms|s)/
		.test(document.querySelector("#history tbody tr td[data-label='The change took']").innerText)`)
	if !took {
		t.Errorf("the failover has no length:\n%s", b.text(t, "history"))
	}

	// A backend dies too.
	g.Servers[0].LinkDown()
	gone := g.Backends[0][0].String()
	b.await(t, "the backend that is down", `
		return [...document.querySelectorAll("tr.bad")]
			.some(r => r.innerText.includes(arguments[0]) && r.innerText.includes("down"))`, gone)
	b.await(t, "the event", `return document.getElementById("events").innerText.includes(arguments[0])`, gone)
	var same, open bool
	b.eval(t, &same, `return window.same === true`)
	b.eval(t, &open, `return document.querySelector("#lb-0 details").open`)
	if !same {
		t.Error("the page was loaded anew")
	} else if !open {
		t.Errorf("the page has closed what the reader opened:\n%s", b.text(t, "lb-0"))
	}
	time.Sleep(time.Second)
	b.shoot(t, pictures()+"/trouble.png", 1280, "light")

	// Both come back.
	g.Servers[0].LinkUp()
	if err := g.app.Start(holder); err != nil {
		t.Fatal(err)
	}
	b.await(t, "that all is well again", `return document.querySelector(".verdict.good") !== null`)

	quiet(t, b, g.sites[viewer])
}

// quiet checks that the page requested nothing from other sites and broke none of its own
// security policy.
func quiet(t *testing.T, b *browser, site string) {
	t.Helper()
	for _, line := range b.complaints(t) {
		t.Errorf("the console says: %s", line)
	}
	for _, url := range b.requests(t) {
		if !own(url, site) {
			t.Errorf("a request to %s", url)
		}
	}
}

// TestPageLooks takes pictures in both colour schemes and at the width of a
// phone, where nothing may stick out.
func TestPageLooks(t *testing.T) {
	b := openBrowser(t)
	g := serve(t, "")
	g.Ask(t.Context())
	b.open(t, g.sites[0]+"/")
	b.await(t, "that all is well", `return document.querySelector(".verdict.good") !== null`)
	// For the charts to have something to show, and more of it in the pictures for people.
	charted := 5 * time.Second
	if os.Getenv("APPLIANCE_SCREENSHOTS") != "" {
		charted = 20 * time.Second
	}
	time.Sleep(charted)
	backgrounds := map[string]string{}
	for _, look := range []struct {
		name, scheme string
		width        int
	}{{"light", "light", 1280}, {"dark", "dark", 1280}, {"phone", "light", 390}, {"phone-dark", "dark", 390}} {
		b.shoot(t, pictures()+"/"+look.name+".png", look.width, look.scheme)
		var wide bool
		b.eval(t, &wide, `return document.documentElement.scrollWidth > innerWidth`)
		if wide {
			t.Errorf("%s: the page is wider than the window", look.name)
		}
		var colour string
		b.eval(t, &colour, `return getComputedStyle(document.body).backgroundColor`)
		backgrounds[look.scheme] = colour
	}
	if backgrounds["light"] == backgrounds["dark"] {
		t.Errorf("both schemes are %s", backgrounds["light"])
	}
	// Every control is reached by the keyboard and has a name; headings are in order.
	var names []string
	b.eval(t, &names, `return [...document.querySelectorAll("a, button, summary, [tabindex]")]
		.filter(e => !e.innerText.trim() && !e.ariaLabel).map(e => e.outerHTML)`)
	if len(names) > 0 {
		t.Errorf("without a name for those who listen: %s", names)
	}
	var levels []int
	b.eval(t, &levels, `return [...document.querySelectorAll("h1,h2,h3")].map(h => +h.tagName[1])`)
	for i, l := range levels {
		if i == 0 && l != 1 || i > 0 && l > levels[i-1]+1 {
			t.Errorf("headings jump: %v", levels)
		}
	}
	quiet(t, b, g.sites[0])
}

// TestPageWithoutScript reads the page with scripts disabled.
func TestPageWithoutScript(t *testing.T) {
	b := openBrowser(t)
	g := serve(t, "")
	b.devtools(t, "Emulation.setScriptExecutionDisabled", map[string]any{"value": true})
	b.open(t, g.sites[0]+"/")
	var source string
	b.call(t, http.MethodGet, b.session+"/source", nil, &source)
	for _, want := range []string{g.Nodes[0].Name, g.Nodes[1].Name, g.Nodes[2].Name, g.VIPs[0].String(),
		g.Backends[0][0].String(), "as of "} {
		if !strings.Contains(source, want) {
			t.Errorf("the page lacks %q without a script", want)
		}
	}
}

// TestPagePassword logs in, under a path, and finds out that others cannot.
func TestPagePassword(t *testing.T) {
	b := openBrowser(t)
	// The hash is of "correct horse".
	g := serve(t, "admin:\n  path: /stats\n  users: [{name: op, passwordHash: "+
		"'$2a$10$XJiKEHY8h5DS82iO4QbPTeVp98SLqthTPZX9Vnq3Qu0IP/zggfxua'}]\n")
	resp, err := http.Get(g.sites[0] + "/stats/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a password: %s", resp.Status)
	}
	b.open(t, strings.Replace(g.sites[0], "http://", "http://op:correct%20horse@", 1)+"/stats")
	b.await(t, "that it is live", `return document.getElementById("live-text")?.textContent === "live"`)
	b.await(t, "all nodes", `return document.querySelectorAll("#nodes .badge.good").length === 3`)
	quiet(t, b, g.sites[0])
}

// TestPageOrders drains a backend and a node from the page, and finds who did it in the events.
func TestPageOrders(t *testing.T) {
	b := openBrowser(t)
	// The hash is of "correct horse".
	g := serve(t, "admin:\n  operate: true\n  users: [{name: op, passwordHash: "+
		"'$2a$10$XJiKEHY8h5DS82iO4QbPTeVp98SLqthTPZX9Vnq3Qu0IP/zggfxua'}]\n")
	b.open(t, strings.Replace(g.sites[0], "http://", "http://op:correct%20horse@", 1)+"/")
	b.await(t, "a link to the orders", `const a = document.querySelector("nav a[href=operate]"); a?.click(); return !!a`)
	order := func(form int, do, to, confirm string) {
		t.Helper()
		b.await(t, "the form", `
			const f = document.querySelectorAll("main form")[arguments[0]];
			if (!f?.elements.do.options) return false;
			const to = [...f.elements.to.options].find(o => o.text.includes(arguments[2]));
			if (!to) return false;
			f.elements.do.value = arguments[1];
			to.selected = true;
			f.querySelector("button").click();
			return true`, form, do, to)
		b.await(t, "the question", `
			const yes = document.querySelector("button[name=confirmed]");
			if (!yes || !document.querySelector("main").innerText.includes(arguments[0])) return false;
			yes.click();
			return true`, confirm)
		b.await(t, "what was done", `return !!document.querySelector("p[role=status]")`)
	}
	server, node := g.Backends[0][0].String(), g.Nodes[2].Name
	order(0, "drain", server, "open ones continue")
	order(1, "drain-node", node, "only if nobody else can")
	b.open(t, g.sites[0]+"/")
	b.await(t, "the order in force", `
		return [...document.querySelectorAll("tr")]
			.some(r => r.innerText.includes(arguments[0]) && r.innerText.includes("drain"))`,
		server)
	for _, what := range []string{"ordered on the page: drain", "ordered on the page: drain-node", "by op"} {
		b.await(t, what, `return document.getElementById("events").innerText.includes(arguments[0])`, what)
	}
	quiet(t, b, g.sites[0])
}
