package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"appliance/integration/scene"
	"appliance/lab"
)

// haproxyPort is where haproxy listens; the apiservers' own port is taken by
// them on every address.
const haproxyPort = 8443

// keepalived is Debian's keepalived and haproxy, with the configuration that
// kubeadm's guide to high availability has.
type keepalived struct {
	scene  *scene.Scene
	advert string
	vrrp   []*lab.Process
	proxy  []*lab.Process
}

func newKeepalived(s *scene.Scene, advert string) (*keepalived, error) {
	for _, program := range []string{"keepalived", "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: apt-get install keepalived haproxy", err)
		}
	}
	k := &keepalived{scene: s, advert: advert,
		vrrp: make([]*lab.Process, len(s.Nodes)), proxy: make([]*lab.Process, len(s.Nodes))}
	// The guide's script asks with curl; a connection tells the same here.
	check := fmt.Sprintf("#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/%d\n", haproxyPort)
	if err := os.WriteFile(k.file("check"), []byte(check), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(k.file("haproxy.cfg"), []byte(k.haproxy()), 0o644); err != nil {
		return nil, err
	}
	for i, n := range s.Nodes {
		if err := os.WriteFile(k.file("keepalived%d.conf", i), []byte(k.config(i)), 0o644); err != nil {
			return nil, err
		}
		// haproxy binds the VIP where it is not.
		if err := n.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_nonlocal_bind", []byte("1"), 0o644)
		}); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (k *keepalived) file(format string, args ...any) string {
	return filepath.Join(k.scene.Dir, fmt.Sprintf(format, args...))
}

func (k *keepalived) config(i int) string {
	state, priority := "BACKUP", 100
	if i == 0 {
		state, priority = "MASTER", 101
	}
	var peers []string
	for j := range k.scene.Nodes {
		if j != i {
			peers = append(peers, k.scene.Addr(j).String())
		}
	}
	// Adverts of less than a second are VRRP 3's, which has no passwords.
	version, auth := "", "    authentication {\n        auth_type PASS\n        auth_pass 42\n    }\n"
	if k.advert != "1" {
		version, auth = "    vrrp_version 3\n", ""
	}
	if k.advert == "0.02" {
		// What its manual recommends for such intervals; with its own limit of
		// real time the kernel kills it in transitions.
		version += "    vrrp_rt_priority 50\n    vrrp_rlimit_rttime 1000000\n    vrrp_no_swap\n"
	}
	return fmt.Sprintf(`global_defs {
    router_id LVS_DEVEL_n%d
    script_user root
%s}
vrrp_script check_apiserver {
    script "%s"
    interval 3
    weight -2
    fall 10
    rise 2
}
vrrp_instance VI_1 {
    state %s
    interface eth0
    virtual_router_id 51
    priority %d
    advert_int %s
    unicast_src_ip %s
    unicast_peer {
        %s
    }
%s    virtual_ipaddress {
        %s
    }
    track_script {
        check_apiserver
    }
}
`, i+1, version, k.file("check"), state, priority, k.advert, k.scene.Addr(i),
		strings.Join(peers, "\n        "), auth, k.scene.VIPs[0])
}

func (k *keepalived) haproxy() string {
	var b strings.Builder
	fmt.Fprintf(&b, `global
    maxconn 4000
defaults
    mode                    http
    option                  dontlognull
    option                  redispatch
    retries                 1
    timeout http-request    10s
    timeout queue           20s
    timeout connect         5s
    timeout client          20s
    timeout server          20s
    timeout http-keep-alive 10s
    timeout check           10s
frontend apiserver
    bind %[1]s:%[2]d
    bind 127.0.0.1:%[2]d
    mode tcp
    default_backend apiserver
backend apiserver
    option httpchk GET /healthz
    http-check expect status 200
    mode tcp
    balance roundrobin
`, k.scene.VIPs[0], haproxyPort)
	for i, of := range k.scene.Backends {
		fmt.Fprintf(&b, "    server n%d %s check\n", i+1, of[0])
	}
	return b.String()
}

// Start starts what does not run on node i.
func (k *keepalived) Start(i int) (err error) {
	n := k.scene.Nodes[i]
	if k.proxy[i] == nil {
		if k.proxy[i], err = n.Start(exec.Command("haproxy", "-db", "-f", k.file("haproxy.cfg"))); err != nil {
			return err
		}
	}
	// -P: without the checker for LVS, which nobody uses here.
	k.vrrp[i], err = n.Start(exec.Command("keepalived", "-n", "-P", "-l",
		"-f", k.file("keepalived%d.conf", i), "-p", k.file("keepalived%d.pid", i), "-r", k.file("vrrp%d.pid", i)))
	return err
}

// Kill kills keepalived with its child, and leaves haproxy.
func (k *keepalived) Kill(i int) { k.vrrp[i].Kill() }

func (k *keepalived) Stop(i int) error {
	if err := k.vrrp[i].Signal(syscall.SIGTERM); err != nil {
		return err
	}
	// How it says good-bye is not what is measured.
	_ = k.vrrp[i].Wait()
	return nil
}

func (k *keepalived) Freeze(i int) error { return k.vrrp[i].SignalGroup(syscall.SIGSTOP) }
func (k *keepalived) Thaw(i int) error   { return k.vrrp[i].SignalGroup(syscall.SIGCONT) }

// AwaitReady waits until the first node, which has the highest priority, has
// the address, and nobody else.
func (k *keepalived) AwaitReady(ctx context.Context, nodes ...int) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var have []int
		for i := range k.scene.Nodes {
			has, err := k.has(i)
			if err != nil {
				return err
			}
			if has {
				have = append(have, i)
			}
		}
		if slices.Equal(have, []int{0}) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("keepalived does not give the address to the first node alone: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// has tells whether node i has the VIP on its link.
func (k *keepalived) has(i int) (bool, error) {
	found := false
	err := k.scene.Nodes[i].Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := eth0.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(k.scene.VIPs[0].AsSlice()) {
				found = true
			}
		}
		return err
	})
	return found, err
}
