package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// A browser is Debian's chromium without a window, driven by chromedriver over
// the WebDriver protocol (https://www.w3.org/TR/webdriver2/).
type browser struct {
	driver  string // chromedriver's address
	session string
}

// openBrowser starts a browser that ends with the test.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	for _, program := range []string{"chromium", "chromedriver"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed; `apt-get install chromium chromium-driver`", program)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "chromedriver", "--port=0")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	b := &browser{driver: "http://127.0.0.1:" + driverPort(t, out)}
	go io.Copy(io.Discard, out) // ends with the process

	args := []string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
		"--user-data-dir=" + t.TempDir()}
	var made struct {
		SessionID string `json:"sessionId"`
	}
	b.call(t, http.MethodPost, "/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName":        "chrome",
		"goog:chromeOptions": map[string]any{"args": args, "binary": "/usr/bin/chromium"},
		"goog:loggingPrefs":  map[string]any{"browser": "ALL", "performance": "ALL"},
	}}}, &made)
	b.session = "/session/" + made.SessionID
	t.Cleanup(func() { b.call(t, http.MethodDelete, b.session, nil, nil) })
	return b
}

func driverPort(t *testing.T, out io.Reader) string {
	t.Helper()
	started := regexp.MustCompile(`started successfully on port (\d+)`)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := started.FindStringSubmatch(lines.Text()); m != nil {
			return m[1]
		}
	}
	t.Fatal("chromedriver did not say on which port it is")
	return ""
}

// call sends a command and reads the value of its answer.
func (b *browser) call(t *testing.T, method, path string, body, value any) {
	t.Helper()
	if err := b.try(method, path, body, value); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
}

func (b *browser) try(method, path string, body, value any) error {
	var data io.Reader
	if method == http.MethodPost {
		if body == nil {
			body = struct{}{}
		}
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		data = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, b.driver+path, data)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 2 * time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(answer.Value))
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, value)
}

func (b *browser) open(t *testing.T, url string) {
	t.Helper()
	b.call(t, http.MethodPost, b.session+"/url", map[string]string{"url": url}, nil)
}

// eval runs a script's body in the page and reads what it returns.
func (b *browser) eval(t *testing.T, value any, script string, args ...any) {
	t.Helper()
	if args == nil {
		args = []any{}
	}
	b.call(t, http.MethodPost, b.session+"/execute/sync", map[string]any{"script": script, "args": args}, value)
}

// devtools sends a command of the DevTools protocol.
func (b *browser) devtools(t *testing.T, command string, params any) {
	t.Helper()
	b.call(t, http.MethodPost, b.session+"/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, nil)
}

// text is what a person reads in the element with this id.
func (b *browser) text(t *testing.T, id string) string {
	t.Helper()
	var s string
	b.eval(t, &s, `const e = document.getElementById(arguments[0]); return e ? e.innerText : ""`, id)
	return s
}

// await waits until the script returns true, without the page being loaded anew.
func (b *browser) await(t *testing.T, what, script string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var done bool
		b.eval(t, &done, script, args...)
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the page never showed %s; it says:\n%s", what, b.text(t, "main"))
		}
	}
}

// look sets the size and the colours of the window.
func (b *browser) look(t *testing.T, width, height int, scheme string) {
	t.Helper()
	b.devtools(t, "Emulation.setDeviceMetricsOverride",
		map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
	b.devtools(t, "Emulation.setEmulatedMedia",
		map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
}

// shoot writes a picture of the whole page.
func (b *browser) shoot(t *testing.T, file string, width int, scheme string) {
	t.Helper()
	b.look(t, width, 900, scheme)
	var high int
	b.eval(t, &high, `return document.documentElement.scrollHeight`)
	b.look(t, width, min(high, 4000), scheme)
	var picture string
	b.call(t, http.MethodGet, b.session+"/screenshot", nil, &picture)
	png, err := base64.StdEncoding.DecodeString(picture)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// complaints are what the browser wrote to its console since the last call:
// script errors, refused resources, violations of the security policy.
func (b *browser) complaints(t *testing.T) []string {
	t.Helper()
	var entries []struct{ Level, Message string }
	b.call(t, http.MethodPost, b.session+"/se/log", map[string]string{"type": "browser"}, &entries)
	var out []string
	for _, e := range entries {
		out = append(out, e.Level+" "+e.Message)
	}
	return out
}

// requests are the addresses that the page asked for since the last call.
func (b *browser) requests(t *testing.T) []string {
	t.Helper()
	var entries []struct{ Message string }
	b.call(t, http.MethodPost, b.session+"/se/log", map[string]string{"type": "performance"}, &entries)
	var out []string
	for _, e := range entries {
		var m struct {
			Message struct {
				Method string
				Params struct {
					Request struct{ URL string }
				}
			}
		}
		if json.Unmarshal([]byte(e.Message), &m) == nil && m.Message.Method == "Network.requestWillBeSent" {
			out = append(out, m.Message.Params.Request.URL)
		}
	}
	return out
}

// own is whether an address is of the site at base, or needs no site at all.
func own(address, base string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	u.User = nil
	return u.Scheme == "http" && "http://"+u.Host == base || u.Scheme == "data" || u.Scheme == "about" ||
		u.Scheme == "chrome"
}
