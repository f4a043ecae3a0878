package forward

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/balancer/rawtcp"
)

// service is one frontend: its listener, and all targets it has ever had.
type service struct {
	f         *Forwarder
	frontend  netip.AddrPort
	listener  int  // a socket
	besides   bool // another program listens on the loopback frontend: see Config.Takeover
	acceptors []*acceptor
	table     atomic.Pointer[table]
	queue     queue
	open      atomic.Int64 // clients' connections
	full      atomic.Bool  // an acceptor waits for one of them to end
	// starvedSince is when clients began to wait for want of files; 0 while none does.
	starvedSince atomic.Int64

	targets map[balancer.Target]*target // guarded by Forwarder.mu
}

// Keepalive probes go to both sides of a connection after 30 s of silence. A side that
// has sent nothing for 90 s is given up. There is no other time limit: a watch may be
// silent for hours.
const (
	keepIdle     = 30 // s
	keepInterval = 10 // s
	keepCount    = 6
	userTimeout  = 90_000 // ms, RFC 5482 and TCP_USER_TIMEOUT in tcp(7)
)

// setOptions sets the options above, and TCP_NODELAY. Accepted sockets inherit them from
// their listener, which saves the system calls.
func setOptions(fd int) unix.Errno {
	for _, o := range [...]struct {
		level, name int
		value       int32
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepInterval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout},
	} {
		if errno := rawtcp.SetOption(fd, o.level, o.name, o.value); errno != 0 {
			return errno
		}
	}
	return 0
}

// listen opens a listener on addr, which the host need not have yet: the VIP is bound
// only when the data plane is ready. An unspecified address means all addresses of its
// own family: [::] leaves 0.0.0.0 to another frontend. A transparent listener also
// takes what the kernel hands to it for another port (IP_TRANSPARENT in ip(7)), and so
// do the sockets that it accepts.
func listen(addr netip.AddrPort, transparent bool) (fd int, err error) {
	family, raw := rawtcp.Sockaddr(addr)
	// A plain TCP socket: those of multipath TCP cannot be spliced.
	fd, errno := rawtcp.Socket(family)
	if errno == 0 {
		level, freebind, foreign := unix.IPPROTO_IP, unix.IP_FREEBIND, unix.IP_TRANSPARENT
		if family == unix.AF_INET6 {
			level, freebind, foreign = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, unix.IPV6_TRANSPARENT
			errno = rawtcp.SetOption(fd, level, unix.IPV6_V6ONLY, 1)
		}
		for _, try := range []func() unix.Errno{
			func() unix.Errno { return rawtcp.SetOption(fd, level, freebind, 1) },
			func() unix.Errno {
				if !transparent {
					return 0
				}
				return rawtcp.SetOption(fd, level, foreign, 1)
			},
			func() unix.Errno { return rawtcp.SetOption(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
			func() unix.Errno { return setOptions(fd) },
			func() unix.Errno { return sysBind(fd, raw) },
			func() unix.Errno { return sysListen(fd) },
		} {
			if errno == 0 {
				errno = try()
			}
		}
		if errno != 0 {
			rawtcp.Close(fd)
		}
	}
	switch errno {
	case 0:
		return fd, nil
	case unix.EADDRINUSE:
		return -1, fmt.Errorf("listen on %s: another program listens there (on that address or on every address; "+
			"ss -ltnp 'sport = :%d' names it): stop it, or give the load balancer another port: %w",
			addr, addr.Port(), errno)
	case unix.EPERM:
		return -1, fmt.Errorf("listen on %s: %w; give the container the capability NET_ADMIN", addr, errno)
	}
	return -1, fmt.Errorf("listen on %s: %w", addr, errno)
}

// address is where the service listens.
func (s *service) address() netip.AddrPort {
	return netip.AddrPortFrom(s.frontend.Addr(), rawtcp.LocalAddr(s.listener).Port())
}

// acceptor accepts the clients of one service for one loop.
type acceptor struct {
	loop    *loop
	service *service
	number  int
	serial  uint32
	watched bool
	batch   int           // clients to accept at a time
	delay   time.Duration // after a shortage
}

const (
	// maxBatch bounds the clients that a loop accepts at a time: another loop may be
	// idle and take the rest of a burst.
	maxBatch = 4
	// slack is how many more connections than the idlest loop a loop may have before
	// it hands new ones over, which costs a system call and a wake-up.
	slack = 4

	minBackOff, maxBackOff = 5 * time.Millisecond, time.Second
)

// open starts accepting clients.
func (a *acceptor) open() {
	l := a.loop
	for a.number = 0; a.number < len(l.acceptors) && l.acceptors[a.number] != nil; {
		a.number++
	}
	if a.number == len(l.acceptors) {
		l.acceptors = append(l.acceptors, nil)
	}
	l.acceptors[a.number] = a
	a.serial = l.next()
	a.batch = 1
	a.resume()
}

// shut stops accepting clients.
func (a *acceptor) shut() {
	a.pause()
	a.loop.acceptors[a.number] = nil
}

// resume makes epoll report clients to the loop. Each client wakes one of the loops.
func (a *acceptor) resume() {
	if a.watched || a.loop.acceptors[a.number] != a {
		return
	}
	errno := sysWatch(a.loop.ep, unix.EPOLL_CTL_ADD, a.service.listener, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: int32(slotAcceptor - a.number), Pad: int32(a.serial),
	})
	if a.watched = errno == 0; !a.watched {
		a.service.f.shortages.Note("accept", errno)
		a.backOff()
	}
}

func (a *acceptor) pause() {
	if a.watched {
		sysWatch(a.loop.ep, unix.EPOLL_CTL_DEL, a.service.listener, nil)
		a.watched = false
	}
}

// backOff leaves clients in the kernel's queue for a while.
func (a *acceptor) backOff() {
	a.pause()
	a.delay = min(max(2*a.delay, minBackOff), maxBackOff)
	a.loop.setTimer(timer{a.loop.now + int64(a.delay), ref{int32(slotAcceptor - a.number), a.serial}})
}

// accept accepts waiting clients.
func (a *acceptor) accept() {
	s := a.service
	var from unix.RawSockaddrAny
	for range a.batch {
		if !s.countIn() {
			a.pause()
			return
		}
		if !s.f.files.claim(perClient) {
			s.countOut()
			a.starve()
			return
		}
		fd, errno := sysAccept(s.listener, &from)
		if errno != 0 {
			s.f.files.free(perClient)
			s.countOut()
			a.batch = 1
			switch errno {
			case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
				s.f.shortages.Note("accept", errno)
				a.backOff()
			}
			// Otherwise there is no client, or it left while it waited (accept(2)).
			if errno == unix.EAGAIN && s.starvedSince.Load() != 0 {
				s.starvedSince.Store(0) // nobody waits any more
			}
			return
		}
		a.delay = 0
		s.f.conns.Add(1)
		source := addrPort(&from)
		l := a.loop.idlest()
		l.open.Add(1)
		if l == a.loop {
			l.adopt(s, fd, source)
		} else {
			l.post(func() { l.adopt(s, fd, source) })
		}
	}
	a.batch = min(2*a.batch, maxBatch)
}

// idlest is the loop for a new connection: this one, unless another one has much fewer
// connections.
func (l *loop) idlest() *loop {
	best, least := l, l.open.Load()
	least -= slack + least/8
	for _, other := range l.f.loops {
		if n := other.open.Load(); n < least {
			best, least = other, n
		}
	}
	return best
}

// countIn counts a client, unless there are MaxConn already. Then the acceptors wait for
// one of them to end.
func (s *service) countIn() bool {
	for range 2 {
		most := int64(s.table.Load().options.MaxConn)
		if n := s.open.Add(1); most <= 0 || n <= most {
			return true
		}
		s.open.Add(-1)
		// A connection that ended just before did not see that acceptors wait.
		s.full.Store(true)
	}
	return false
}

// countOut uncounts a client.
func (s *service) countOut() {
	s.open.Add(-1)
	s.reopen()
}

// reopen resumes the acceptors that wait.
func (s *service) reopen() {
	if s.full.Load() && s.full.CompareAndSwap(true, false) {
		for _, a := range s.acceptors {
			a.loop.post(a.resume)
		}
	}
}

// stop closes the listener. Open connections go on.
func (s *service) stop() {
	s.f.onLoops(func(l *loop) {
		for _, a := range s.acceptors {
			if a.loop == l {
				a.shut()
			}
		}
	})
	// A program that is being started has a copy of the socket until it runs: as long as the copy listens, the address
	// is in use, and the kernel takes clients there that nobody accepts.
	unix.Shutdown(s.listener, unix.SHUT_RD)
	unix.Close(s.listener)
}
