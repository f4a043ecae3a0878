package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"appliance/lab"
)

// TestKubeadm follows the guide of kubeadm by its commands, but for kubeadm's own: the image that the program packs is
// imported into Debian's containerd, and run with exactly what the printed pod says, by what stands for the kubelet.
// The servers are there from the start.
func TestKubeadm(t *testing.T) {
	guidesOnly(t)
	for _, program := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: integration/setup.sh test installs it", err)
		}
	}
	t.Parallel()
	readme, guide := readGuide(t, "../README.md"), readGuide(t, "kubeadm.md")
	s := newCluster(t, "IPv4", 4)
	first, rest, late := s.boxes[0], s.boxes[1:3], s.boxes[3]
	for _, b := range s.boxes {
		b.run(t, "systemctl start containerd")
		b.kubelet(t)
	}
	for _, b := range s.boxes {
		eventually(t, func() error {
			_, err := b.try("ctr version")
			return err
		})
	}
	for _, b := range s.boxes[:3] {
		b.run(t, "cp /usr/local/bin/appliance .\n"+readme["README, the program"])
	}
	doctor := readGuide(t, "doctor.md")
	s.boxes[1].write(t, "home/config.yaml", "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n"+
		"group: {insecure: true}\n", 0o600)
	// What it finds is not the question here; that it understands the question is.
	rest[0].run(t, "may() { \"$@\" || [ $? = 1 ]; }\n"+strings.ReplaceAll(doctor["doctor"], "appliance doctor",
		"may appliance doctor"))
	rest[0].run(t, doctor["doctor, bundle"]+"tar -tzf report.tar.gz")
	rest[0].run(t, "set +e\ntimeout --signal INT 1 "+doctor["doctor, answer"]+"[ $? = 124 ]")
	runAll(t, guide["kubeadm, the image"], first, late)
	rest[0].run(t, readme["README, the key"]) // the first one's takes its place
	first.run(t, guide["kubeadm, the key"])
	for _, b := range s.boxes[1:] {
		first.hand(t, "etc/appliance/group.key", "group.key", b)
		b.run(t, "mkdir -p /etc/appliance\ncp -p group.key /etc/appliance/")
	}
	first.run(t, slowly+guide["kubeadm, the pod"])
	ready(t, first)
	for _, b := range rest {
		b.run(t, slowly+readme["README, the pod"])
	}
	ready(t, s.boxes[:3]...)
	vip := s.targets()[0]
	if err := s.client.WaitPort(patient(t), vip); err != nil {
		t.Fatal(err)
	}
	connected(t, s.boxes[:3]...)
	if said := first.run(t, guide["kubeadm, look"]); !strings.Contains(said, "holder: ") || strings.Count(said, "yes") < 2 {
		t.Errorf("status says\n%s", said)
	}
	late.run(t, slowly+guide["kubeadm, another node"])
	ready(t, s.boxes...)
	connected(t, s.boxes...)

	clients := s.client.Probe(t.Context(), lab.Probe{Target: vip, Every: 20 * time.Millisecond, Patience: patience, TLS: s.tls})
	t.Cleanup(clients.Stop)
	for _, b := range s.boxes {
		const look = `pid=$(ctr -n k8s.io task ls | awk '$1 == "appliance" { print $2 }')
grep -E '^(CapBnd|CapEff|CapPrm|NoNewPrivs|Seccomp):' /proc/$pid/status
! touch /proc/$pid/root/x`
		said := b.run(t, look)
		for _, want := range []string{"CapPrm:\t0000000000003000", "CapEff:\t0000000000003000", "CapBnd:\t0000000000003000",
			"NoNewPrivs:\t1", "Seccomp:\t2"} {
			if !strings.Contains(said, want) {
				t.Errorf("in the container of %s, there is no %q in\n%s", b.Name, want, said)
			}
		}
	}
	// The kubelet stops a pod whose file has gone; the others serve.
	holder := s.boxes[0]
	for _, b := range s.boxes {
		if st, err := b.status(t.Context()); err == nil && st.Holder == st.ID {
			holder = b
		}
	}
	holder.run(t, "rm /etc/kubernetes/manifests/appliance.yaml")
	eventually(t, func() error {
		if _, err := holder.status(t.Context()); err == nil {
			return fmt.Errorf("the appliance of %s still runs", holder.Name)
		}
		return nil
	})
	time.Sleep(time.Second)
	patients{clients}.noticed(t, "the end of a pod")
}

// TestKubeadmFamilies runs what the guide of kubeadm prints for IPv6 and for both families. The containers of TestKubeadm
// are processes here.
func TestKubeadmFamilies(t *testing.T) {
	guidesOnly(t)
	guide := readGuide(t, "kubeadm.md")
	for family, block := range map[string]string{"IPv6": "kubeadm, IPv6", "dual": "kubeadm, dual stack"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			s := newCluster(t, family, 3)
			s.boxes[0].run(t, guide["kubeadm, the key"])
			for _, b := range s.boxes[1:] {
				s.boxes[0].hand(t, "etc/appliance/group.key", "group.key", b)
				b.run(t, "mkdir -p /etc/appliance\ncp -p group.key /etc/appliance/")
			}
			for _, b := range s.boxes {
				b.kubelet(t)
				b.run(t, slowly+guide[block])
			}
			ready(t, s.boxes...)
			connected(t, s.boxes...)
			for _, vip := range s.targets() {
				if err := s.client.WaitPort(patient(t), vip); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range s.boxes {
				eventually(t, func() error {
					st, err := b.status(t.Context())
					for _, lb := range st.LoadBalancers {
						if err == nil && lb.Plane != "direct" {
							err = fmt.Errorf("%s is served by %s: %s", lb.Name, lb.Plane, lb.Reason)
						}
					}
					return err
				})
			}
		})
	}
}
