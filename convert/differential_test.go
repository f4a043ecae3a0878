package convert_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/configs"
	"appliance/convert"
)

// TestAccessAndBackendAsHAProxy runs generated access rules and use_backend lines in haproxy itself, asks from many
// addresses, and compares whom it lets in and where it leads them with what the result of the conversion says.
func TestAccessAndBackendAsHAProxy(t *testing.T) {
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed")
	}
	servers := map[string]string{} // address → name
	for _, name := range []string{"x", "y"} {
		servers[greet(t, name)] = name
	}
	random := rand.New(rand.NewPCG(3, 4))
	const sections = 30
	config, ports := generated(t, random, sections, servers)
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-db", "-f", path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ours := byPort(t, path, config)
	reached := map[string]int{}
	for n, port := range ports {
		lb, carried := ours[port]
		for i := range 40 {
			from := netip.AddrFrom4([4]byte{127, 0, 1, byte(i * 6)})
			got, err := asks(t, from, port)
			if err != nil {
				t.Fatal(err)
			}
			reached[got]++
			if !carried {
				if got != "" { // only what refuses everybody is not carried over
					t.Errorf("section %d lets %s in, and was not carried over", n, from)
				}
				continue
			}
			want := ""
			if lets(lb, from) {
				want = servers[lb.Backends[0].Addr.String()]
			}
			if got != want {
				t.Errorf("section %d: haproxy leads %s to %q, we to %q\nallow %v deny %v", n, from, got, want,
					lb.ConnOptions.Allow, lb.ConnOptions.Deny)
			}
		}
	}
	if len(reached) != 3 { // x, y and nobody
		t.Errorf("clients reached %v", reached)
	}
	if t.Failed() {
		t.Log(config)
	}
}

// greet starts a server that says its name.
func greet(t *testing.T, name string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, name)
			conn.Close()
		}
	}()
	return l.Addr().String()
}

// generated is a haproxy.cfg of frontends with random rules, and their ports.
func generated(t *testing.T, random *rand.Rand, sections int, servers map[string]string) (string, []uint16) {
	var b strings.Builder
	b.WriteString("defaults\n mode tcp\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n")
	source := func() string {
		a := netip.AddrFrom4([4]byte{127, 0, 1, byte(random.IntN(256))})
		return netip.PrefixFrom(a, 24+random.IntN(9)).Masked().String()
	}
	condition := func() string {
		tests := []string{"net", "!net", "one", "!one", "{ src " + source() + " }", "!{ src -m ip " + source() + " }",
			"never", "!never", "half", "!ever", "LOCALHOST"}
		one := func() string { return tests[random.IntN(len(tests))] }
		switch random.IntN(6) {
		case 0:
			return ""
		case 1:
			return " unless " + one()
		case 2:
			return " if " + one() + " or " + one()
		case 3:
			return " if " + one() + " " + one()
		}
		return " if " + one()
	}
	rules := func(stages ...string) {
		fmt.Fprintf(&b, " acl net src %s %s\n acl one src %s\n acl net src -i %s\n", source(), source(), source(), source())
		fmt.Fprintf(&b, " acl never always_false\n acl half always_false\n acl half src %s\n acl ever src %s\n"+
			" acl ever always_true\n acl LOCALHOST src %s\n", source(), source(), source())
		for range random.IntN(5) {
			fmt.Fprintf(&b, " tcp-request %s %s%s\n", stages[random.IntN(len(stages))],
				[]string{"accept", "reject"}[random.IntN(2)], condition())
		}
	}
	var ports []uint16
	for i := range sections {
		l, err := net.Listen("tcp", "127.0.0.1:0") // a free port
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // until all have theirs: no two frontends get the same
		port := l.Addr().(*net.TCPAddr).Port
		ports = append(ports, uint16(port))
		fmt.Fprintf(&b, "frontend f%d\n bind 127.0.0.1:%d\n", i, port)
		rules("connection", "content")
		switch random.IntN(3) {
		case 0:
			fmt.Fprintf(&b, " use_backend x%d\n", i)
		case 1:
			fmt.Fprintf(&b, " use_backend x%d if FALSE\n use_backend y%d unless FALSE\n use_backend x%d\n", i, i, i)
		}
		fmt.Fprintf(&b, " default_backend y%d\n", i)
		for at, name := range servers {
			fmt.Fprintf(&b, "backend %s%d\n", name, i)
			rules("content")
			fmt.Fprintf(&b, " server s %s\n", at)
		}
	}
	return b.String(), ports
}

// byPort is the result of the conversion.
func byPort(t *testing.T, path, config string) map[uint16]configs.LoadBalancerEntry {
	res, err := convert.Convert([]convert.File{{Name: path, Data: []byte(config)}}, convert.Addresses{})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := load(res.YAML)
	if err != nil {
		t.Fatalf("%v\n%s", err, res.YAML)
	}
	list := map[uint16]configs.LoadBalancerEntry{}
	for _, lb := range cfg.LoadBalancers {
		list[lb.Port] = lb
	}
	return list
}

// lets is the meaning of allow and deny.
func lets(lb configs.LoadBalancerEntry, a netip.Addr) bool {
	in := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return (len(lb.ConnOptions.Allow) == 0 || in(lb.ConnOptions.Allow)) && !in(lb.ConnOptions.Deny)
}

// asks connects from an address, and returns the name of the server, or nothing if the connection is refused.
func asks(t *testing.T, from netip.Addr, port uint16) (string, error) {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := d.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil && time.Now().Before(end) {
			continue // haproxy is not there yet
		}
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if err := conn.SetDeadline(end); err != nil {
			return "", err
		}
		name, _ := io.ReadAll(conn) // a reset says no as well as the end does
		return string(name), nil
	}
}

// TestLoginOverTLSAsHAProxy: with check-ssl, haproxy begins TLS at once, whatever steps the protocol has for it, and so
// does the check that its line becomes.
func TestLoginOverTLSAsHAProxy(t *testing.T) {
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed")
	}
	for _, option := range []string{"mysql-check user x", "pgsql-check user x"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		first := func() string {
			t.Helper()
			_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			b := make([]byte, 2)
			if _, err := io.ReadFull(conn, b); err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		dir := t.TempDir()
		config := fmt.Sprintf("defaults\n mode tcp\n timeout connect 20s\n timeout client 20s\n timeout server 20s\n"+
			"listen a\n bind unix@%s/a\n bind 127.0.0.1:1\n option %s\n server s %s check check-ssl verify none inter 20s\n", dir,
			option, l.Addr())
		path := filepath.Join(dir, "haproxy.cfg")
		theirs := strings.Replace(config, " bind 127.0.0.1:1\n", "", 1)
		if err := os.WriteFile(path, []byte(theirs), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(binary, "-db", "-f", path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		handshake := first()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if handshake != "\x16\x03" { // RFC 8446, section 5.1
			t.Errorf("%s: haproxy begins with %q", option, handshake)
		}
		lb := byPort(t, path, config)[1]
		checker, err := balancer.NewChecker(lb.Check)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = checker.Check(t.Context(), lb.Backends[0].Backend)
			close(ended)
		}()
		if got := first(); got != handshake {
			t.Errorf("%s: we begin with %q", option, got)
		}
		<-ended
	}
}
