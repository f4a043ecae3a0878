package forward

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// service is one frontend: its listener, and the targets it ever had.
type service struct {
	f        *Forwarder
	frontend netip.AddrPort
	listener int // a socket
	doors    []*door
	table    atomic.Pointer[table]
	queue    queue
	open     atomic.Int64 // clients' connections
	full     atomic.Bool  // a door waits for one of them to end

	targets map[balancer.Target]*target // guarded by Forwarder.mu
}

// Both sides of a connection are asked for a sign of life after 30 s of
// silence, and given up 90 s after the last one. There is no other time limit:
// a watch may be silent for hours.
const (
	keepIdle     = 30 // s
	keepInterval = 10 // s
	keepCount    = 6
	userTimeout  = 90_000 // ms, RFC 5482 and TCP_USER_TIMEOUT in tcp(7)
)

// setOptions sets the options above, and has small writes sent at once.
// Accepted sockets inherit them from their listener, which saves as many
// system calls for each.
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
		if errno := sysOption(fd, o.level, o.name, o.value); errno != 0 {
			return errno
		}
	}
	return 0
}

// listen opens a listener on addr, which the host need not have yet: the VIP
// is bound only when the data plane is ready. An unspecified address means all
// those of its own family: [::] leaves 0.0.0.0 to another frontend.
func listen(addr netip.AddrPort) (fd int, err error) {
	family, raw := sockaddr(addr)
	// A plain TCP socket: those of multipath TCP cannot be spliced.
	fd, errno := sysSocket(family)
	if errno == 0 {
		level, freebind := unix.IPPROTO_IP, unix.IP_FREEBIND
		if family == unix.AF_INET6 {
			level, freebind = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
			errno = sysOption(fd, level, unix.IPV6_V6ONLY, 1)
		}
		for _, try := range []func() unix.Errno{
			func() unix.Errno { return sysOption(fd, level, freebind, 1) },
			func() unix.Errno { return sysOption(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
			func() unix.Errno { return setOptions(fd) },
			func() unix.Errno { return sysBind(fd, raw) },
			func() unix.Errno { return sysListen(fd) },
		} {
			if errno == 0 {
				errno = try()
			}
		}
		if errno != 0 {
			sysClose(fd)
		}
	}
	switch errno {
	case 0:
		return fd, nil
	case unix.EADDRINUSE:
		return -1, fmt.Errorf("listen on %s: another program listens there (on that address or on every address; ss -ltnp 'sport = :%d' names it): stop it, or give the load balancer another port: %w",
			addr, addr.Port(), errno)
	}
	return -1, fmt.Errorf("listen on %s: %w", addr, errno)
}

// address is where the service listens.
func (s *service) address() netip.AddrPort {
	return netip.AddrPortFrom(s.frontend.Addr(), localAddr(s.listener).Port())
}

// door is a loop's way in to a service.
type door struct {
	loop    *loop
	service *service
	number  int
	serial  uint32
	watched bool
	batch   int           // clients to take at a time
	delay   time.Duration // after a shortage
}

const (
	// mostBatch is how many clients a loop takes at a time when many come: the
	// others of a burst may find another loop idle.
	mostBatch = 4
	// slack is how many more connections than the idlest loop one may have
	// before it gives new ones away, which costs a system call and a wake-up.
	slack = 4

	firstDelay, mostDelay = 5 * time.Millisecond, time.Second
)

// open begins to take clients.
func (d *door) open() {
	l := d.loop
	for d.number = 0; d.number < len(l.doors) && l.doors[d.number] != nil; {
		d.number++
	}
	if d.number == len(l.doors) {
		l.doors = append(l.doors, nil)
	}
	l.doors[d.number] = d
	d.serial = l.next()
	d.batch = 1
	d.resume()
}

// shut stops taking clients.
func (d *door) shut() {
	d.pause()
	d.loop.doors[d.number] = nil
}

// resume has the loop told of clients. Each one wakes one of the loops.
func (d *door) resume() {
	if d.watched || d.loop.doors[d.number] != d {
		return
	}
	errno := sysWatch(d.loop.ep, unix.EPOLL_CTL_ADD, d.service.listener, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: int32(slotDoor - d.number), Pad: int32(d.serial),
	})
	if d.watched = errno == 0; !d.watched {
		d.later(errno)
	}
}

func (d *door) pause() {
	if d.watched {
		sysWatch(d.loop.ep, unix.EPOLL_CTL_DEL, d.service.listener, nil)
		d.watched = false
	}
}

// later leaves clients in the kernel's queue for a while.
func (d *door) later(errno unix.Errno) {
	d.service.f.shortage.tell(d.service.f.log, "no connection can be accepted", errno)
	d.pause()
	d.delay = min(max(2*d.delay, firstDelay), mostDelay)
	d.loop.timers.push(timer{d.loop.now + int64(d.delay), ref{int32(slotDoor - d.number), d.serial}})
}

// accept takes clients in.
func (d *door) accept() {
	s := d.service
	var from unix.RawSockaddrAny
	for range d.batch {
		if !s.enter() {
			d.pause()
			return
		}
		fd, errno := sysAccept(s.listener, &from)
		if errno != 0 {
			s.left()
			d.batch = 1
			switch errno {
			case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
				d.later(errno)
			}
			// Else there is none, or it has gone while it waited (accept(2)).
			return
		}
		d.delay = 0
		s.f.conns.Add(1)
		source := addrPort(&from)
		l := d.loop.idlest()
		l.open.Add(1)
		if l == d.loop {
			l.take(s, fd, source)
		} else {
			l.do(func() { l.take(s, fd, source) })
		}
	}
	d.batch = min(2*d.batch, mostBatch)
}

// idlest is the loop for a new connection: this one, unless another has much
// less to do.
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

// enter counts a client, unless there are too many already. Then the doors
// wait for one of them to end.
func (s *service) enter() bool {
	for range 2 {
		most := int64(s.table.Load().handling.MaxConn)
		if n := s.open.Add(1); most <= 0 || n <= most {
			return true
		}
		s.open.Add(-1)
		// One that ended just before would not have seen that we wait.
		s.full.Store(true)
	}
	return false
}

// left counts a client off.
func (s *service) left() {
	s.open.Add(-1)
	s.reopen()
}

// reopen opens the doors again that wait.
func (s *service) reopen() {
	if s.full.Load() && s.full.CompareAndSwap(true, false) {
		for _, d := range s.doors {
			d.loop.do(d.resume)
		}
	}
}

// stop closes the listener. Open connections go on.
func (s *service) stop() {
	s.f.onLoops(func(l *loop) {
		for _, d := range s.doors {
			if d.loop == l {
				d.shut()
			}
		}
	})
	unix.Close(s.listener)
}

// shortage logs that the host is out of something once per minute, however
// many connections meet it.
type shortage struct {
	mu   sync.Mutex
	last time.Time
}

func (s *shortage) tell(log *slog.Logger, what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < time.Minute {
		return
	}
	s.last = time.Now()
	log.Error(what+": the host or this process is out of a resource; raise its limit (LimitNOFILE, ip_local_port_range) or lower the load", "error", err)
}
