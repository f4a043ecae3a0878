package nft

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
)

// BenchmarkNATConnections compares new connections per second through the
// plane with the smallest ruleset that does the same. The two take turns, as
// sub-benchmarks of the same network:
//
//	go test -run - -bench NATConnections -benchtime 20000x -count 5
func BenchmarkNATConnections(b *testing.B) {
	w := newWorld(b)
	w.client.in(func() {
		w.sysctl("net/ipv4/ip_local_port_range", "1024 65535")
		w.sysctl("net/ipv4/tcp_tw_reuse", "1")
	})
	var hand []string
	for i, m := range w.backends {
		m.discard(":6443")
		hand = append(hand, fmt.Sprintf("%d : %v . 6443", i, m.addr4))
	}
	n := w.newNAT()
	b.Run("ours", func(b *testing.B) {
		w.apply(n, w.service(ruleset.IPv4(), w.backends...))
		w.connect(b)
	})
	w.node.in(func() {
		if _, err := Cleanup(); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("by hand", func(b *testing.B) {
		to := fmt.Sprintf("ip daddr %v tcp dport 6443 dnat ip to numgen inc mod 3 map { %s }\n", vip4,
			strings.Join(hand, ", "))
		w.node.run("nft", "flush ruleset; add table ip hand"+
			"; add chain ip hand pre { type nat hook prerouting priority -100; }; add rule ip hand pre "+to+
			"; add chain ip hand out { type nat hook output priority -100; }; add rule ip hand out "+to+
			"; add chain ip hand post { type nat hook postrouting priority 100; }; add rule ip hand post ct status dnat "+
			"masquerade")
		w.connect(b)
		w.node.run("nft", "flush", "ruleset")
	})
}

// connect makes b.N connections from the client to the VIP, 64 at a time, and
// resets them.
func (w *world) connect(b *testing.B) {
	var wg sync.WaitGroup
	jobs := make(chan struct{})
	for range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread() // and never unlocked: the thread ends in the client's namespace
			if err := netns.Set(w.client.ns); err != nil {
				b.Error(err)
			}
			for range jobs {
				if err := connectOnce(vip4.As4(), 6443); err != nil {
					b.Error(err)
				}
			}
		}()
	}
	b.ResetTimer()
	for range b.N {
		jobs <- struct{}{}
	}
	close(jobs)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
}

func connectOnce(addr [4]byte, port int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	// A reset leaves no TIME_WAIT, which would use up the ports.
	if err := unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.Connect(s, &unix.SockaddrInet4{Addr: addr, Port: port})
}

// discard accepts connections and closes them when their clients do.
func (m *machine) discard(address string) {
	m.t.Helper()
	var l net.Listener
	m.in(func() {
		var err error
		if l, err = net.Listen("tcp", address); err != nil {
			m.t.Fatal(err)
		}
	})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	m.t.Cleanup(func() { l.Close(); wg.Wait() })
}
