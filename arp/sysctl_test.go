package arp

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSysctls(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "net/ipv4/conf")
	write := func(iface, key, v string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, iface), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, iface, key), []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what, iface string, ignore, announce int) {
		t.Helper()
		for key, v := range map[string]int{"arp_ignore": ignore, "arp_announce": announce} {
			if got, err := NewSysctls(root).read(iface, key); got != v || err != nil {
				t.Errorf("%s: %s/%s is %d, %v, want %d", what, iface, key, got, err, v)
			}
		}
	}
	for iface, v := range map[string]string{"all": "0", "eth0": "0", "eth1": "2"} {
		write(iface, "arp_ignore", v)
		write(iface, "arp_announce", v)
	}
	s := NewSysctls(root)
	set := []Silenced{{VIP: vip4, Interface: "eth0"}, {VIP: vip4, Interface: "eth1"}}
	silence := func(set []Silenced, repaired int) {
		t.Helper()
		if got, err := s.Silence(context.Background(), set); got != repaired || err != nil {
			t.Errorf("repaired %d, %v, want %d", got, err, repaired)
		}
	}
	silence(set, 0)
	want("silenced", "eth0", 3, 2)
	want("good before", "eth1", 2, 2)
	want("of all", "all", 0, 0)
	silence(set, 0)
	write("eth0", "arp_ignore", "0")
	silence(set, 1)
	want("set back by somebody", "eth0", 3, 2)
	silence(nil, 0)
	want("restored", "eth0", 0, 0)
	want("never touched", "eth1", 2, 2)

	s = NewIgnoreOnly(root)
	silence(set, 0)
	want("arp_ignore alone", "eth0", 3, 0)
	silence(nil, 0)
	want("arp_ignore alone, restored", "eth0", 0, 0)

	s = NewSysctls(root)
	write("all", "arp_ignore", "4") // means nothing, and wins over 3
	if _, err := s.Silence(context.Background(), set); err == nil ||
		!strings.Contains(err.Error(), "net.ipv4.conf.all.arp_ignore=4") {
		t.Errorf("reserved value of all: %v", err)
	}
	if _, err := s.Silence(context.Background(), []Silenced{{Interface: "eth9"}}); err == nil {
		t.Error("no error for a missing interface")
	}
}

func TestSysctlsReadOnly(t *testing.T) {
	h := newLAN(t).host("192.0.2.11/24")
	within(t, h.ns, func() error {
		// A mount of this thread's own, as in a container.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /proc/sys: %w", err)
		}
		if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("remount /proc/sys: %w", err)
		}
		_, err := NewSysctls("").Silence(context.Background(), []Silenced{{VIP: vip4, Interface: "eth0"}})
		if err == nil ||
			!strings.Contains(err.Error(), `put the line "net.ipv4.conf.eth0.arp_ignore = 3" into /etc/sysctl.d`) {
			t.Errorf("%v, want the line to put", err)
		}
		return nil
	})
}
