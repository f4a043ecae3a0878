package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/integration/vm"
	"appliance/lab"
)

// eachBackendUp waits until the appliance of a box that is outside of any group serves, with all its servers.
func eachBackendUp(t *testing.T, b *box) {
	t.Helper()
	eventually(t, func() error {
		s, err := b.status(t.Context())
		if err != nil {
			return err
		}
		for _, lb := range s.LoadBalancers {
			if lb.Plane == "" || len(lb.Backends) != 3 {
				return fmt.Errorf("%s is not served: %+v", lb.Name, lb)
			}
			for _, be := range lb.Backends {
				if be.State != "up" {
					return fmt.Errorf("%s is %s: %s", be.Address, be.State, be.Reason)
				}
			}
		}
		if len(s.NotReady) > 0 {
			return fmt.Errorf("not ready: %s", strings.Join(s.NotReadyTexts(), "; "))
		}
		return nil
	})
}

// TestFromNginx changes nginx of a node over, as kubespray lays it out, by the commands of the guide, and back.
func TestFromNginx(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so"); err != nil {
		t.Skipf("%v: integration/setup.sh test installs it", err)
	}
	guide := readGuide(t, "migration.md")
	s := newStreet(t, "IPv4", 1)
	node, local := s.boxes[0], netip.MustParseAddrPort("127.0.0.1:6443")
	conf, err := os.ReadFile("../convert/testdata/kubespray-nginx/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	node.write(t, "etc/nginx/nginx.conf", string(conf), 0o644)
	node.run(t, "mkdir -p /var/lib/nginx")
	node.kubelet(t)
	node.write(t, "etc"+manifests[len("/etc"):]+"/nginx-proxy.yml", `apiVersion: v1
kind: Pod
metadata: {name: nginx-proxy, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - name: nginx-proxy
    image: docker.io/library/nginx:1.28.0-alpine
    imagePullPolicy: IfNotPresent
`, 0o600)
	if err := node.WaitPort(patient(t), local); err != nil {
		t.Fatal(err)
	}
	ask := func() patients {
		p := node.Probe(t.Context(), lab.Probe{Target: local, Every: 5 * time.Millisecond, Patience: patience})
		t.Cleanup(p.Stop)
		return patients{p}
	}
	clients := ask()
	open, err := node.OpenConns(t.Context(), lab.LongConns{Target: local, N: longConns, Every: 50 * time.Millisecond,
		Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	node.run(t, guide["nginx, the file"])
	node.run(t, guide["nginx, the start"])
	eachBackendUp(t, node)
	// From now on nginx gets nobody new, and keeps whom it has.
	nginxOpen := func() string { return node.run(t, "ss -Htn state established sport = 6443 | wc -l") }
	eventually(t, func() error {
		if said := nginxOpen(); lastLine(said) != fmt.Sprint(longConns) {
			return fmt.Errorf("nginx has %s connections, not the %d from before", lastLine(said), longConns)
		}
		return nil
	})
	if n := open.Await(patient(t), time.Second); n.OK != longConns {
		t.Errorf("open connections, when the appliance had started: %+v", n)
	}
	open.Close() // nginx would end them in ten seconds
	node.run(t, guide["nginx, the end"])
	eventually(t, func() error {
		if said, err := node.try("ss -Hltn src 127.0.0.1 and sport = 6443 | wc -l"); err != nil || lastLine(said) != "0" {
			return fmt.Errorf("somebody listens on nginx's port: %s %v", said, err)
		}
		return nil
	})
	time.Sleep(500 * time.Millisecond)
	clients.noticed(t, "the change-over")

	node.run(t, guide["nginx, back"])
	if err := node.WaitPort(patient(t), local); err != nil {
		t.Fatal(err)
	}
}

// TestFromKubeVIP changes kube-vip in ARP mode over, by the commands of the guide, and back: two nodes by install, one
// by a static pod. What stands for kube-vip is in standIn.
func TestFromKubeVIP(t *testing.T) {
	guidesOnly(t)
	t.Parallel()
	guide := readGuide(t, "migration.md")
	s := newCluster(t, "IPv4", 3)
	vip := s.targets()[0]
	pod := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: kube-vip, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - name: kube-vip
    image: ghcr.io/kube-vip/kube-vip:v0.8.9
    args: [manager]
    env:
    - {name: vip_arp, value: "true"}
    - {name: vip_interface, value: eth0}
    - {name: cp_enable, value: "true"}
    - {name: vip_leaderelection, value: "true"}
    - {name: address, value: %s}
`, vip.Addr())
	has := func(b *box) bool {
		return strings.Contains(b.run(t, "ip address show dev eth0"), vip.Addr().String()+"/")
	}
	lease := filepath.Join(t.TempDir(), "lease")
	for i, b := range s.boxes {
		b.kubelet(t, leaseFile+"="+lease)
		b.write(t, "etc"+manifests[len("/etc"):]+"/kube-vip.yaml", pod, 0o600)
		if i == 0 { // the first has the lease
			eventually(t, func() error {
				if !has(b) {
					return fmt.Errorf("%s has no %s", b.Name, vip)
				}
				return nil
			})
		}
	}
	m := s.watch(t)

	first, rest := s.boxes[0], s.boxes[1:]
	first.run(t, slowly+guide["kube-vip, the first node"])
	first.hand(t, "etc/appliance/group.key", "group.key", rest...)
	rest[0].run(t, slowly+guide["kube-vip, the other nodes"])
	rest[1].run(t, "mkdir -m 700 /etc/appliance\ncp -p group.key /etc/appliance/\n"+slowly+guide["kube-vip, as a pod"])
	first.waits(t, "another program has "+vip.Addr().String()+" on eth0")
	for _, b := range rest {
		b.waits(t, "another machine")
	}
	for _, b := range s.boxes {
		eventually(t, func() error { // they serve, and do not answer yet
			st, err := b.status(t.Context())
			if err == nil && (len(st.LoadBalancers) != 1 || st.LoadBalancers[0].Plane == "") {
				err = fmt.Errorf("%s does not serve: %+v", b.Name, st.LoadBalancers)
			}
			return err
		})
	}
	m.goOn(t, "the start beside kube-vip")
	runAll(t, guide["kube-vip, nodes without the address"], rest...)
	said := first.run(t, guide["kube-vip, the node with the address"])
	m.isOver(t, s, first, said)
	if st, err := first.status(t.Context()); err == nil {
		t.Logf("served by %s", st.LoadBalancers[0].Plane)
	}
	m.open.Close()
	time.Sleep(time.Second)
	m.clients.noticed(t, "the takeover")

	rest[1].run(t, "mv /etc/kubernetes/manifests/appliance.yaml /root/")
	runAll(t, guide["kube-vip, back"], s.boxes[:2]...)
	if err := s.client.WaitPort(patient(t), vip); err != nil {
		t.Fatal(err)
	}
	if !has(s.boxes[0]) && !has(s.boxes[1]) {
		t.Error("no kube-vip has the address")
	}

	// The same with the file of kube-vip 0.1, on a machine that had nothing yet.
	runAll(t, "rm -f /etc/kubernetes/manifests/*\nsystemctl disable --now kubelet", s.boxes...)
	first.run(t, "cp /usr/local/bin/appliance .\nappliance uninstall --purge\ninstall appliance /usr/local/bin/")
	old := "localPeer: {id: cp1, address: 192.0.2.11, port: 10000}\nremotePeers:\n" +
		"- {id: cp2, address: 192.0.2.12, port: 10000}\n- {id: cp3, address: 192.0.2.13, port: 10000}\n" +
		"vip: 192.0.2.10\ngratuitousARP: true\ninterface: eth0\nloadBalancers:\n" +
		"- {name: apiserver, type: tcp, port: 8443, bindToVip: true, backends: [{address: 192.0.2.12, port: 6443}]}\n"
	first.write(t, "home/config.yaml", old, 0o600)
	first.run(t, guide["kube-vip 0.1"])
	eventually(t, func() error {
		st, err := first.status(t.Context())
		if err == nil && (st.ID != "cp1" || len(st.LoadBalancers) != 1 || st.LoadBalancers[0].Plane == "") {
			err = fmt.Errorf("by kube-vip 0.1's file: %s, %+v", st.ID, st.LoadBalancers)
		}
		return err
	})
}

// TestFromLvscare changes lvscare of a node over, as sealos lays it out, by the commands of the guide. It takes a kernel
// with ip_vs, so it runs in a virtual machine. What stands for lvscare is in standIn.
func TestFromLvscare(t *testing.T) {
	guidesOnly(t)
	if os.Getenv(inVM) == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		runInVM(t, vm.Spec{Stdout: t.Output(), Env: []string{"APPLIANCE_TEST_GUIDES=1"}}, self,
			"-test.run=^TestFromLvscare$", "-test.v", "-test.timeout=1h")
		return
	}
	guide := readGuide(t, "migration.md")
	s := openStreet(t, "IPv4")
	authority, err := lab.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	server, err := authority.Server("10.103.97.2")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.serve(t, s.machine(t, fmt.Sprintf("s%d", i+1), s.addrs(11+i)...), server)
	}
	node, vip := newBox(t, s.machine(t, "node", s.addrs(2)...)), netip.MustParseAddrPort("10.103.97.2:6443")
	node.kubelet(t)
	// A node has a way out, and kube-proxy, whose rules make use of conntrack.
	node.run(t, "ip route add default via 192.0.2.1\n"+
		"nft 'add table ip kube-proxy; add chain ip kube-proxy output { type nat hook output priority -100; }; "+
		"add rule ip kube-proxy output ct state new counter'")
	node.write(t, "etc"+manifests[len("/etc"):]+"/kube-sealos-lvscare.yaml", `apiVersion: v1
kind: Pod
metadata: {name: kube-sealos-lvscare, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - name: kube-sealos-lvscare
    image: sealos.hub:5000/sealos/lvscare:v4.3.7
    args: [care, --vs, "10.103.97.2:6443", --health-path, /healthz, --health-schem, https,
      --rs, "192.0.2.11:6443", --rs, "192.0.2.12:6443", --rs, "192.0.2.13:6443"]
    securityContext: {privileged: true}
`, 0o600)
	if err := node.WaitPort(patient(t), vip); err != nil {
		t.Fatal(err)
	}
	s.tls = authority.Client("10.103.97.2")
	p := node.Probe(t.Context(), lab.Probe{Target: vip, Every: 200 * time.Millisecond, Patience: patience, TLS: s.tls})
	t.Cleanup(p.Stop)
	open, err := node.OpenConns(t.Context(), lab.LongConns{Target: vip, N: 6, Every: 200 * time.Millisecond,
		Patience: patience, TLS: s.tls})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	node.run(t, guide["lvscare, the start"])
	eachBackendUp(t, node)
	if n := open.Await(patient(t), time.Second); n.OK != 6 {
		t.Errorf("connections of lvscare: %+v", n)
	}
	open.Close()
	node.run(t, guide["lvscare, the end"])
	time.Sleep(2 * time.Second)
	p.Finish()
	tries := p.Tries()
	if len(tries) < 20 {
		t.Errorf("a client asked %d times only", len(tries))
	}
	for _, try := range tries {
		if try.Err != nil {
			t.Errorf("from %s to %s: %v", try.Start.UTC().Format(stamp), try.End.UTC().Format(stamp), try.Err)
		}
	}

	node.run(t, guide["lvscare, back"])
	if err := node.WaitPort(patient(t), vip); err != nil {
		t.Fatal(err)
	}
}

// lastLine is what the last command of a box printed, of a single line.
func lastLine(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return lines[len(lines)-1]
}
