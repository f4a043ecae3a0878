package nft

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// socketBuffer holds a whole transaction, which is one message to the kernel,
	// and its answers, one for every rule and set, which all come before the first
	// is read. The kernel's default of 208 KiB overflows at some hundred rules.
	socketBuffer = 16 << 20
	// answer holds one answer: the kernel makes no longer parts of a dump than
	// 32 KiB (netlink_dump), and sends an error with the message it is about.
	answer = 64 << 10
)

// linger is how long a socket stays open after its first use. After a transaction
// the kernel takes apart what was replaced, which waits for all packets under way
// (RCU), some 10 ms. Whoever closes a socket waits for that, and so does
// everybody's next transaction (nft_rcv_nl_event), though a change of several tables
// is in a hurry: there is a host in them that has died.
const linger = time.Second

// A line is a socket to nf_tables that is opened when it is used.
type line struct {
	mu sync.Mutex
	fd int // -1: not open
}

// dial makes a connection to nf_tables in the network namespace of the calling
// thread, for a second or so. Its end need not be told.
//
// The library lets others be its socket. Its own takes a goroutine for each
// answer, and there is one for every rule: on a host whose cores are busy, these
// changes of threads take longer than the kernel.
func dial() (*nftables.Conn, error) {
	return nftables.New(nftables.WithTestDial(newLine().exchange))
}

func newLine() *line { return &line{fd: -1} }

// open makes sure of the socket. Called with mu held.
func (l *line) open() error {
	if l.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	// Beyond the limit for everybody; in a user namespace, up to it.
	for _, o := range [][2]int{{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}} {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBuffer)
		if err != nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBuffer)
		}
		if err != nil {
			unix.Close(fd)
			return os.NewSyscallError("setsockopt", err)
		}
	}
	l.fd = fd
	time.AfterFunc(linger, l.hangUp)
	return nil
}

func (l *line) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.close()
}

// close closes the socket if it is open. Called with mu held.
func (l *line) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// exchange sends requests as one datagram and returns all that the kernel has to say
// of them, which is there when the sending is done. Who asks for more without a
// request gets io.EOF: there is none.
func (l *line) exchange(requests []netlink.Message) (replies []netlink.Message, err error) {
	if len(requests) == 0 {
		return nil, io.EOF
	}
	var datagram []byte
	for _, m := range requests {
		b, err := m.MarshalBinary()
		if err != nil {
			return nil, fmt.Errorf("encoding for nf_tables: %w", err)
		}
		datagram = append(datagram, b...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close() // answers may be left in it that nobody has asked for
		}
	}()
	if err := again(func() error {
		return unix.Sendto(l.fd, datagram, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, answer)
	for {
		var n int
		err := again(func() (err error) {
			n, _, err = unix.Recvfrom(l.fd, buf, unix.MSG_DONTWAIT)
			return err
		})
		switch {
		case err == unix.EAGAIN:
			return replies, nil
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		}
		// What is parsed is a part of what was read.
		messages, err := syscall.ParseNetlinkMessage(bytes.Clone(buf[:n]))
		if err != nil {
			return nil, fmt.Errorf("decoding an answer of nf_tables: %w", err)
		}
		for _, m := range messages {
			replies = append(replies, netlink.Message{
				Header: netlink.Header{
					Length: m.Header.Len, Type: netlink.HeaderType(m.Header.Type), Flags: netlink.HeaderFlags(m.Header.Flags), Sequence: m.Header.Seq,
					// The kernel names the socket's port, the library expects its own number.
					PID: requests[0].Header.PID,
				},
				Data: m.Data,
			})
		}
	}
}

// again calls f until no signal interrupts it.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
