package balancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Checker checks a backend once, and ends when ctx does. It returns nil when the
// backend can serve, an error that wraps ErrDraining when the backend wants no new
// connections, a *Mismatch when the check itself may be the wrong one, and any
// other error when the backend cannot serve.
type Checker interface {
	Check(ctx context.Context, b Backend) error
}

// A Mismatch is the answer of a server that is alive but does not speak what the
// check expects.
type Mismatch struct {
	// Saw is what the server did.
	Saw string
	// Write is the line of configuration that fits such a server.
	Write string
}

func (m *Mismatch) Error() string { return m.Saw + "; if that is how this server is, write " + m.Write }

// NewChecker is the Checker for c. It reads the files that c names.
func NewChecker(c Check) (Checker, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case CheckNone:
		return None{}, nil
	case CheckTCP:
		return TCP{Port: c.Port}, nil
	case CheckTLS:
		return newTLSChecker(c)
	case CheckHTTP, CheckHTTPS:
		return newHTTPChecker(c)
	}
	return nil, fmt.Errorf("check type %q is unknown: use tcp, tls, http, https or none", c.Type)
}

// None considers every backend healthy.
type None struct{}

// Check implements Checker.
func (None) Check(context.Context, Backend) error { return nil }

// TCP checks that a connection opens. The server does not notice.
//
// A TLS server logs a handshake error for every connection that closes without a
// byte. So the check holds back the last ACK of the TCP handshake (RFC 9293,
// section 3.5) and sends a reset instead: the server's kernel has shown that it
// listens and has room in its queue, but never hands the connection to accept.
// The reset leaves no TIME_WAIT either.
type TCP struct {
	// Port is the port that is checked; zero means the backend's own.
	Port uint16
}

// Check implements Checker.
func (t TCP) Check(ctx context.Context, b Backend) error {
	d := net.Dialer{
		KeepAlive: -1,
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			if cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}
	conn, err := d.DialContext(ctx, "tcp", Check{Port: t.Port}.at(b).String())
	if err != nil {
		return dialError(err)
	}
	// Without linger, Close sends the reset.
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		conn.Close()
		return err
	}
	return conn.Close()
}

// dial opens a connection to the server.
func dial(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1} // the connection is too short for it
	conn, err := d.DialContext(ctx, "tcp", at.String())
	return conn, dialError(err)
}

// dialError says why a connection failed, without the addresses, which stand beside
// it anyway.
func dialError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("refuses the connection: %w", unix.ECONNREFUSED)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("does not take the connection in time")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
