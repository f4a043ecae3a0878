package integration

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
)

// TestDirectWorkers makes a worker's server a backend, first beside those of the peers,
// then alone. Direct does not serve a server on a machine without the appliance.
func TestDirectWorkers(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			w := newWorld(t, family)
			const only = 446
			w.serve(t, w.nodes[worker], only)
			w.serve(t, w.s1, twin)
			four := balance{name: "four", port: scene.Port, backend: scene.Port, scheduler: "rr",
				nodes: []string{"n1", "n2", "n3", "w1"}}
			one := balance{name: "one", port: only, backend: only, scheduler: "rr", nodes: []string{"w1"}}
			foreign := balance{name: "foreign", port: twin, backend: twin, scheduler: "rr", nodes: []string{"n1", "n2", "s1"}}
			three := four
			three.nodes = four.nodes[:3]
			w.start(t, "", []balance{three, one, foreign})
			w.resolve(t)
			direct := func(lb balance, nodes ...int) {
				t.Helper()
				for _, i := range nodes {
					w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool {
						return served(balancer.Direct, len(lb.nodes))(s) &&
							!slices.ContainsFunc(s.Backends, func(b balancer.BackendStatus) bool { return b.PassedOver != "" })
					})
				}
			}
			all := func() {
				t.Helper()
				direct(four, 0, 1, 2, worker)
				direct(one, 0, 1, 2, worker)
			}
			// The worker is added, and nobody leaves the plane for that.
			direct(three, 0, 1, 2)
			w.reconfigure(t, four, one, foreign)
			all()
			w.reached(t, w.client, four, one, foreign)
			w.reached(t, w.far, four, one)

			// The refusal names the machine without the appliance.
			why := fmt.Sprintf("%s is at none of the peers' addresses, and no worker answers",
				netip.AddrPortFrom(w.addr("s1"), twin))
			for i := range w.apps[:worker] {
				w.chosen(t, i, "foreign", balancer.NFTables, map[balancer.PlaneName]string{balancer.Direct: why})
				if !strings.Contains(w.apps[i].log(), why) {
					t.Errorf("%s has not logged %q", w.nodes[i].Name, why)
				}
			}

			for _, tt := range []struct {
				name string
				lb   balance
				run  func(t *testing.T, holder int) (lost string)
			}{
				{"the holder is killed", four, w.killed},
				{"the holder, whose servers are none of them, is killed", one, w.killed},
				{"the worker stops", four, func(t *testing.T, _ int) string { return w.workerStops(t, four) }},
				{"the worker is killed", four, func(t *testing.T, _ int) string {
					w.apps[worker].proc.Kill()
					time.Sleep(8 * time.Second) // the probes have noticed
					w.apps[worker].start(t)
					w.ready(t, worker)
					return ""
				}},
				{"a peer starts without the worker", four, w.startsWithoutWorker},
				{"the worker's cable", four, func(t *testing.T, _ int) string {
					if err := w.nodes[worker].Unplug(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(4 * time.Second)
					if err := w.nodes[worker].Plug(); err != nil {
						t.Fatal(err)
					}
					return "w1"
				}},
			} {
				t.Run(tt.name, func(t *testing.T) {
					all()
					holder := w.holder(t)
					w.keeps(t, tt.lb, func() string { return tt.run(t, holder) })
				})
			}
			// It is taken out.
			all()
			w.reconfigure(t, three, one, foreign)
			direct(three, 0, 1, 2, worker)
			for i := range w.apps {
				if log := w.apps[i].log(); strings.Contains(log, `data plane nftables" loadBalancer=four was=direct`) {
					t.Errorf("%s has left direct", w.nodes[i].Name)
				}
			}
			w.oneAnswer(t)
		})
	}
}

// TestDirectWorkerOfBothFamilies: the same machine is a backend of both.
func TestDirectWorkerOfBothFamilies(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	tr := gatherAll(t, scene.Dual)
	tr.begin(t)
	four, start := tr.joinWorker(t)
	start()
	tr.served(t, balancer.Direct, 0, 1, 2)
	text, err := os.ReadFile(tr.config())
	if err != nil {
		t.Fatal(err)
	}
	n := tr.Nodes[four]
	const after = "  check: {type: tcp}\n"
	next := strings.Replace(string(text), after,
		after+fmt.Sprintf("  backends: [%q, %q]\n", n.Addr(true), n.Addr(false)), 1)
	if err := errors.Join(os.WriteFile(tr.config()+".next", []byte(next), 0o644),
		os.Rename(tr.config()+".next", tr.config())); err != nil {
		t.Fatal(err)
	}
	tr.served(t, balancer.Direct, 0, 1, 2, four)
	for _, vip := range tr.VIPs {
		eventually(t, func() error {
			c, a, err := dial(t.Context(), tr.Client, tr.Target(vip))
			if err != nil {
				return err
			}
			c.Close()
			if a.Server != "server4" {
				return fmt.Errorf("%v leads to %s", vip, a.Server)
			}
			return nil
		})
	}
	tr.oneAnswer(t)
}

// TestDirectWorkersTrust: peers and a worker understand each other however they
// trust, and while the group's key is replaced.
func TestDirectWorkersTrust(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	four := balance{name: "four", port: scene.Port, backend: scene.Port, scheduler: "rr",
		nodes: []string{"n1", "n2", "n3", "w1"}}
	direct := func(t *testing.T, w *world) {
		t.Helper()
		for i := range w.apps {
			w.await(t, i, four.name, func(s balancer.LoadBalancerStatus) bool {
				return served(balancer.Direct, 4)(s) &&
					!slices.ContainsFunc(s.Backends, func(b balancer.BackendStatus) bool { return b.PassedOver != "" })
			})
		}
	}
	t.Run("rotation", func(t *testing.T) {
		t.Parallel() // most of it is waiting
		w := newWorld(t, scene.IPv4)
		w.start(t, "", []balance{four})
		direct(t, w)
		path := filepath.Join(w.dir, "group.key")
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		young, err := exec.Command(binary, "keygen").Output()
		if err != nil {
			t.Fatal(err)
		}
		for step, keys := range []string{string(old) + string(young), string(young) + string(old), string(young)} {
			if err := os.WriteFile(path, []byte(keys), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, p := range w.apps[:worker] {
				eventually(t, func() error {
					if n := strings.Count(p.log(), "the group keys have changed"); n <= step {
						return fmt.Errorf("%s has changed its keys %d times", p.node.Name, n)
					}
					return nil
				})
			}
			time.Sleep(7 * time.Second) // who is not understood is silent by then
			direct(t, w)
		}
	})
	t.Run("certificates", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, scene.IPv4)
		issue := w.authority(t)
		w.begin(t, func(i int) string {
			n := w.nodes[i]
			cert := x509.Certificate{DNSNames: []string{n.Name}}
			if i == worker {
				cert.URIs = []*url.URL{{Scheme: "appliance", Host: "worker", Path: "/" + n.Name}}
			}
			return strings.Replace(w.config("", "KEY", []balance{four}), "keyFile: KEY", issue(n.Name, cert), 1)
		})
		direct(t, w)
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, scene.IPv4)
		w.begin(t, func(i int) string {
			return strings.Replace(w.config("", "KEY", []balance{four}), "keyFile: KEY", "insecure: true", 1)
		})
		direct(t, w)
	})
}

// authority makes a certificate authority. What it returns issues a certificate
// and says how to configure it.
func (w *world) authority(t *testing.T) (issue func(name string, c x509.Certificate) string) {
	t.Helper()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(w.dir, name)
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chown(path, serviceUser, 0)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sign := func(c, by *x509.Certificate, key ed25519.PrivateKey) (der []byte, own ed25519.PrivateKey) {
		public, own, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			by, key = c, own
		}
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if der, err = x509.CreateCertificate(rand.Reader, c, by, public, key); err != nil {
			t.Fatal(err)
		}
		return der, own
	}
	ca := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		Subject: pkix.Name{CommonName: "a test's own"}}
	der, key := sign(ca, nil, nil)
	caFile := write("ca.crt", "CERTIFICATE", der)
	return func(name string, c x509.Certificate) string {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
			x509.ExtKeyUsageClientAuth}
		der, own := sign(&c, ca, key)
		pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("caFile: %s\n  certFile: %s\n  certKeyFile: %s", caFile, write(name+".crt", "CERTIFICATE", der),
			write(name+".tls", "PRIVATE KEY", pkcs8))
	}
}

// reconfigure gives the peers other load balancers. The worker hears of it.
func (w *world) reconfigure(t *testing.T, balances ...balance) {
	t.Helper()
	for _, p := range w.apps[:worker] {
		text := w.config("", filepath.Join(w.dir, "group.key"), balances)
		if err := os.WriteFile(p.path+".yaml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(binary, "reload", "--socket", p.path+".sock").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// workerStops: a worker that stops gets no new connections and keeps the open ones.
func (w *world) workerStops(t *testing.T, lb balance) string {
	w.apps[worker].stop(t)
	w.passesOver(t, lb, "w1")
	for i := range w.apps[:worker] {
		w.await(t, i, lb.name, func(s balancer.LoadBalancerStatus) bool {
			return s.Plane == balancer.Direct && s.Moving == "" && strings.Contains(s.Backends[worker].PassedOver, "worker")
		})
	}
	w.apps[worker].start(t)
	w.ready(t, worker)
	return ""
}

// startsWithoutWorker: a peer remembers that there is one, and so comes to the
// same choice as the others.
func (w *world) startsWithoutWorker(t *testing.T, holder int) string {
	w.apps[worker].stop(t)
	i := others(holder)[0]
	w.apps[i].stop(t)
	const away = `data plane nftables" loadBalancer=four`
	before := strings.Count(w.apps[i].log(), away)
	w.apps[i].start(t)
	if s := w.await(t, i, "four", served(balancer.Direct, 4)); len(s.Refused) > 0 {
		t.Errorf("%s: %+v", w.nodes[i].Name, s.Refused)
	}
	if strings.Count(w.apps[i].log(), away) > before {
		t.Errorf("%s took the worker for a stranger", w.nodes[i].Name)
	}
	w.apps[worker].start(t)
	w.ready(t, worker)
	return ""
}
