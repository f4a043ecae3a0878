package doctor

import (
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A socket is one that listens (TCP) or is bound (UDP), as /proc/net has it.
type socket struct {
	network string // tcp or udp
	at      netip.AddrPort
	inode   string
}

// A listener is what the appliance will listen on, and for what.
type listener struct {
	network string
	at      netip.AddrPort
	what    string // for people
	key     string // where it is set
}

// ports looks for sockets of others where the appliance will listen.
func (v *visit) ports() (all []Finding) {
	have, err := v.sockets()
	if err != nil {
		return []Finding{hint("ports", "what listens on this host is unknown: "+err.Error(), "", "ss -tulnp")}
	}
	for _, want := range v.listeners() {
		at := slices.IndexFunc(have, func(s socket) bool { return collides(s, want) })
		if at < 0 {
			all = append(all, fine("ports", "%s %s is free for %s", want.network, want.at, want.what))
			continue
		}
		owner := v.owner(have[at].inode)
		if strings.HasPrefix(owner, "appliance ") {
			all = append(all, fine("ports", "%s has %s %s, for %s", owner, want.network, want.at, want.what))
			continue
		}
		all = append(all, problem("ports", fmt.Sprintf("%s has %s %s, which %s needs", owner, have[at].network, have[at].at,
			want.what),
			"two programs cannot listen on one port", "stop it, or set another "+want.key+" (on every peer, if it is the peer "+
				"port)"))
	}
	return all
}

// listeners lists what the configuration has this node listen on.
func (v *visit) listeners() (all []listener) {
	if v.here && !v.cfg.Worker() {
		for _, network := range []string{"tcp", "udp"} {
			all = append(all, listener{network, v.self.AddrPort(), "the peer port", "group.port"})
		}
	}
	for _, text := range v.cfg.Admin.Listen {
		host, port, ok := cutPort(text)
		if !ok {
			continue // off, or a unix socket
		}
		addr := netip.IPv6Unspecified()
		if host != "" {
			var err error
			if addr, err = netip.ParseAddr(host); err != nil {
				continue
			}
		}
		all = append(all, listener{"tcp", netip.AddrPortFrom(addr, port), "the status page", "admin.listen"})
	}
	for _, lb := range v.cfg.LoadBalancers {
		addrs := lb.Listen
		if !lb.BindToVIP {
			addrs = append(slices.Clone(addrs), netip.IPv6Unspecified())
		}
		for _, a := range addrs {
			all = append(all, listener{"tcp", netip.AddrPortFrom(a, lb.Port), "load balancer " + lb.Name,
				"port for the load balancer"})
		}
	}
	return all
}

func cutPort(text string) (host string, port uint16, ok bool) {
	at := strings.LastIndexByte(text, ':')
	if at < 0 || strings.HasPrefix(text, "unix:") {
		return "", 0, false
	}
	n, err := strconv.ParseUint(text[at+1:], 10, 16)
	return strings.Trim(text[:at], "[]"), uint16(n), err == nil
}

// collides says whether a socket keeps others from listening there. The unspecified IPv6 address takes IPv4 too.
func collides(s socket, want listener) bool {
	if s.network != want.network || s.at.Port() != want.at.Port() {
		return false
	}
	a, b := s.at.Addr().Unmap(), want.at.Addr().Unmap()
	wild := func(x, y netip.Addr) bool { return x.IsUnspecified() && (x.Is6() || y.Is4()) }
	return a == b.WithZone("") || wild(a, b) || wild(b, a)
}

// sockets lists what listens on this host.
func (v *visit) sockets() (all []socket, err error) {
	read := 0
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		data, ferr := fs.ReadFile(v.files, "proc/net/"+file)
		if ferr != nil {
			err = ferr // a host without IPv6 has no tcp6
			continue
		}
		read++
		all = append(all, parseSockets(strings.TrimSuffix(file, "6"), string(data))...)
	}
	if read > 0 {
		err = nil
	}
	return all, err
}

// tcpListen is TCP_LISTEN of include/net/tcp_states.h; 07 is what an unconnected UDP socket shows.
const (
	tcpListen  = "0A"
	udpUnbound = "07"
)

// parseSockets reads proc(5)'s /proc/net/tcp and its like.
func parseSockets(network, text string) (all []socket) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != tcpListen && f[3] != udpUnbound || (network == "tcp") != (f[3] == tcpListen) {
			continue
		}
		if at, ok := procAddr(f[1]); ok {
			all = append(all, socket{network, at, f[9]})
		}
	}
	return all
}

// procAddr reads 0100007F:1F90. Each word of four bytes is in the order of the host, which is little-endian on all but
// s390x; there the bytes stand as they are.
func procAddr(text string) (netip.AddrPort, bool) {
	word, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(word)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if littleEndian {
		for i := 0; i < len(b); i += 4 {
			slices.Reverse(b[i : i+4])
		}
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// owner names the process that has a socket, as "kube-apiserver (pid 1234)".
func (v *visit) owner(inode string) string {
	pids, err := fs.ReadDir(v.files, "proc")
	if err != nil {
		return "a process"
	}
	for _, p := range pids {
		if _, err := strconv.Atoi(p.Name()); err != nil {
			continue
		}
		dir := path.Join("proc", p.Name(), "fd")
		fds, err := fs.ReadDir(v.files, dir)
		if err != nil {
			continue // it has ended, or is not ours to look at
		}
		for _, fd := range fds {
			if to, err := fs.ReadLink(v.files, path.Join(dir, fd.Name())); err == nil && to == "socket:["+inode+"]" {
				return fmt.Sprintf("%s (pid %s)", v.line(path.Join("proc", p.Name(), "comm")), p.Name())
			}
		}
	}
	return "a process that cannot be seen from here"
}
