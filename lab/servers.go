package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Servers are backends that run in this process and listen inside machines.
// To each line they answer with their name and the client's address as they
// see it; after the line "echo" they send back whatever comes. To a line that
// begins an HTTP request they answer in HTTP, once, so that curl is a client.
type Servers struct {
	wg sync.WaitGroup

	mu     sync.Mutex
	open   map[io.Closer]bool
	closed bool
}

// A Server is one of Servers.
type Server struct {
	Name string
	Addr netip.AddrPort

	all      *Servers
	ln       net.Listener
	raw      syscall.RawConn // of the listener
	requests atomic.Int64
}

// Requests is the number of lines answered so far.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Serve starts a server at addr inside the machine: TLS if config is set,
// plain TCP if it is nil.
func (ss *Servers) Serve(n *Machine, name string, addr netip.AddrPort, config *tls.Config) (*Server, error) {
	ln, err := n.Listen(context.Background(), addr)
	if err != nil {
		return nil, fmt.Errorf("lab: server %s: %w", name, err)
	}
	raw, err := ln.(syscall.Conn).SyscallConn()
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("lab: server %s: %w", name, err)
	}
	if config != nil {
		ln = tls.NewListener(ln, config)
	}
	s := &Server{Name: name, Addr: addr, all: ss, ln: ln, raw: raw}
	if !ss.add(ln) {
		ln.Close()
		return nil, errClosed
	}
	ss.wg.Go(s.accept)
	return s, nil
}

func (s *Server) accept() {
	for {
		c, err := s.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a client that gave up before it was accepted
		}
		if !s.all.add(c) {
			c.Close()
			return
		}
		s.all.wg.Go(func() {
			defer s.all.remove(c)
			s.serve(c)
		})
	}
}

func (s *Server) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		s.requests.Add(1)
		if strings.HasPrefix(line, "GET ") {
			s.serveHTTP(c, in)
			return
		}
		if _, err := fmt.Fprintf(c, "%s %s\n", s.Name, c.RemoteAddr()); err != nil {
			return
		}
		if line == "echo\n" {
			io.Copy(c, in)
			return
		}
	}
}

// serveHTTP answers the request whose first line has been read.
func (s *Server) serveHTTP(c net.Conn, in *bufio.Reader) {
	for line := "GET"; strings.TrimSpace(line) != ""; {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			return
		}
	}
	fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n%s %s\n", s.Name, c.RemoteAddr())
}

// Close ends the server's listener; open connections stay, as when a program
// stops accepting. Servers.Close ends those too.
func (s *Server) Close() {
	// A program that is being started has a copy of the socket for a moment after ForkLock is free again (exec wakes
	// the parent before it closes files), and as long as the copy listens, the address is in use.
	if err := s.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) }); err != nil {
		return // closed already
	}
	s.all.remove(s.ln)
}

// Close ends all servers with their connections and waits for them.
func (ss *Servers) Close() {
	ss.mu.Lock()
	ss.closed = true
	for c := range ss.open {
		c.Close()
	}
	ss.mu.Unlock()
	ss.wg.Wait()
}

func (ss *Servers) add(c io.Closer) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.closed {
		return false
	}
	if ss.open == nil {
		ss.open = map[io.Closer]bool{}
	}
	ss.open[c] = true
	return true
}

func (ss *Servers) remove(c io.Closer) {
	ss.mu.Lock()
	delete(ss.open, c)
	ss.mu.Unlock()
	c.Close()
}
