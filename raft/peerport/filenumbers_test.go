package peerport

import (
	"context"
	"io"
	"net"
	"testing"
)

// TestLift: a connection on a low file number gets a high one, and goes on.
func TestLift(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	number := func(c net.Conn) (n int) {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := number(conn); n >= lowest {
		t.Skipf("the test has %d files open already", n)
	}
	var f filler
	defer f.empty()
	conn = f.lift(conn)
	defer conn.Close()
	if n := number(conn); n < lowest {
		t.Errorf("the connection is file %d, below %d", n, lowest)
	}
	if again := f.lift(conn); again != conn {
		t.Error("a connection on a high number was lifted")
	}
	go func() {
		client.Write([]byte("still there"))
		client.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); string(got) != "still there" || err != nil {
		t.Errorf("the lifted connection reads %q, %v", got, err)
	}
	f.empty()
	if next, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Error(err)
	} else {
		if raw, err := next.(*net.TCPListener).SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if fd >= lowest {
					t.Errorf("an empty filler keeps numbers: the next file is %d", fd)
				}
			})
		}
		next.Close()
	}
}

// TestLiftAfterReset: a connection that was reset before it was accepted has its source still, or whoever connects to
// the peer port and resets would stop it.
func TestLiftAfterReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	from := client.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
	client.(*net.TCPConn).SetLinger(0) // the end is a reset
	client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var f filler
	defer f.empty()
	conn = f.lift(conn)
	defer conn.Close()
	if got := Source(conn); got != from {
		t.Errorf("the connection is from %v, want %v", got, from)
	}
}
