package feed

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOlderFeed(t *testing.T) {
	if f := (Feed{Version: "1"}); f.older(Feed{Version: "2", Cluster: "c", Index: 3}) {
		t.Error("a list of a peer that tells no index is older")
	}
	have := Feed{Cluster: "one", Index: 7}
	for name, tt := range map[string]struct {
		got  Feed
		want bool
	}{
		"behind":                    {Feed{Cluster: "one", Index: 6}, true},
		"the same":                  {Feed{Cluster: "one", Index: 7}, false},
		"ahead":                     {Feed{Cluster: "one", Index: 8}, false},
		"recovered, or begun anew":  {Feed{Cluster: "two", Index: 1}, false},
		"a version that tells none": {Feed{}, false},
		"a peer that does not know": {Feed{Cluster: "one"}, false},
	} {
		if got := tt.got.older(have); got != tt.want {
			t.Errorf("%s: older %v, want %v", name, got, tt.want)
		}
	}
}

// TestWorkersNoticeVanishedHosts: the kernel is told to notice them.
func TestWorkersNoticeVanishedHosts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := DialWorker(t.Context(), netip.MustParseAddrPort(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]struct{ level, option, want int }{
		"SO_KEEPALIVE":     {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"TCP_KEEPIDLE":     {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
		"TCP_KEEPINTVL":    {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
		"TCP_USER_TIMEOUT": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1500},
	} {
		got := 0
		if e := raw.Control(func(fd uintptr) {
			got, err = unix.GetsockoptInt(int(fd), o.level, o.option)
		}); e != nil || err != nil {
			t.Fatal(name, e, err)
		}
		if got != o.want {
			t.Errorf("%s is %d, want %d", name, got, o.want)
		}
	}
}
