package load

import (
	"bytes"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Serve answers on at until the process ends.
func Serve(at netip.AddrPort) error {
	listener, err := socket()
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(listener, sockaddr(at)); err != nil {
		return err
	}
	if err := unix.Listen(listener, 1<<14); err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	if err := p.add(listener, unix.EPOLLIN); err != nil {
		return err
	}
	s := &server{p: p, kinds: make(map[int]byte), left: make(map[int]int), bulk: make([]byte, bulkSize)}
	for {
		events, err := p.wait(-1)
		if err != nil {
			return err
		}
		for _, ev := range events {
			if int(ev.Fd) == listener {
				s.accept(listener)
			} else {
				s.serve(int(ev.Fd))
			}
		}
	}
}

type server struct {
	p     *poller
	kinds map[int]byte
	left  map[int]int // bytes of the request that are still to come
	bulk  []byte
}

func (s *server) accept(listener int) {
	for range 16 {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		if s.p.add(fd, unix.EPOLLIN) != nil {
			unix.Close(fd)
			continue
		}
		s.kinds[fd], s.left[fd] = 0, requestSize
	}
}

func (s *server) end(fd int) {
	delete(s.kinds, fd)
	delete(s.left, fd)
	unix.Close(fd)
}

func (s *server) serve(fd int) {
	if s.kinds[fd] == loads {
		if _, err := unix.Write(fd, s.bulk); err != nil && err != unix.EAGAIN {
			s.end(fd)
		}
		return
	}
	n, err := unix.Read(fd, s.bulk)
	if err == unix.EAGAIN {
		return
	}
	if err != nil || n == 0 {
		s.end(fd)
		return
	}
	if s.kinds[fd] == 0 {
		s.kinds[fd] = s.bulk[0]
		if s.bulk[0] == loads {
			s.p.change(fd, unix.EPOLLOUT)
			return
		}
	}
	if s.kinds[fd] == sends {
		return
	}
	if s.kinds[fd] == gets {
		s.get(fd, s.bulk[:n])
		return
	}
	if s.left[fd] -= n; s.left[fd] > 0 {
		return
	}
	s.left[fd] = requestSize
	if _, err := unix.Write(fd, s.bulk[:answerSize]); err != nil || s.kinds[fd] == closes {
		s.end(fd)
	}
}

// get answers a request of HTTP.
func (s *server) get(fd int, request []byte) {
	if !bytes.HasSuffix(request, []byte("\r\n\r\n")) {
		return // the rest is still to come
	}
	last := bytes.Contains(request, []byte("Connection: close"))
	answer := keptAnswer
	if last {
		answer = lastAnswer
	}
	if _, err := unix.Write(fd, answer); err != nil || last {
		s.end(fd)
	}
}

// Answers of HTTP, of answerSize bytes with their heads.
var (
	keptAnswer = httpAnswer("keep-alive")
	lastAnswer = httpAnswer("close")
)

func httpAnswer(connection string) []byte {
	const head = "HTTP/1.1 200 OK\r\nConnection: %s\r\nContent-Length: %03d\r\n\r\n"
	size := answerSize - len(fmt.Sprintf(head, connection, 0))
	return append(fmt.Appendf(nil, head, connection, size), bytes.Repeat([]byte("x"), size)...)
}
