package ruleset

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
	// socketBuffer holds a whole transaction, which is one message to the kernel, and
	// its answers, one for every rule and set, which all come before the first is
	// read. The kernel's default of 208 KiB overflows at some hundred rules.
	socketBuffer = 16 << 20
	// answerSize is enough for one answer: the parts of a dump have at most 32 KiB
	// (netlink_dump), and an error comes with the message that it is about.
	answerSize = 64 << 10
)

// linger is how long a socket stays open after it was opened. After a transaction the
// kernel frees what was replaced, which waits some 10 ms for all packets under way
// (RCU). Closing a socket waits for that, and so does everybody's next transaction
// (nft_rcv_nl_event). A change of several tables must not wait: a host in them may
// just have died.
const linger = time.Second

// A socket is one to nf_tables that is opened when it is used.
type socket struct {
	mu sync.Mutex
	fd int // -1: not open
	// stays says that the socket is closed by the end of the process only, since tables
	// belong to it.
	stays bool
	buf   []byte // for one answer
}

// Dial makes a connection to nf_tables in the network namespace of the calling thread.
// It lasts for a second or so, and need not be closed.
//
// The library may use another socket than its own, which starts a goroutine for each
// answer, that is, for every rule: on a host whose cores are busy, switching threads
// takes longer than the kernel does.
func Dial() (*nftables.Conn, error) {
	return nftables.New(nftables.WithTestDial(newSocket().exchange))
}

func newSocket() *socket { return &socket{fd: -1} }

// open opens the socket if it is not open. Called with mu held.
func (s *socket) open() error {
	if s.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	// Beyond the system's limit; in a user namespace, up to it.
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
	s.fd = fd
	if !s.stays {
		time.AfterFunc(linger, s.expire)
	}
	return nil
}

func (s *socket) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
}

// close closes the socket if it is open. Called with mu held.
func (s *socket) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// drain forgets the answers that have not been read. Called with mu held.
func (s *socket) drain() {
	buf := make([]byte, answerSize)
	for {
		err := retryEINTR(func() (err error) {
			_, _, err = unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
			return err
		})
		if err != nil && err != unix.ENOBUFS { // there were more answers than fit
			return
		}
	}
}

// exchange sends requests as one datagram and returns all of the kernel's answers,
// which are there when sending returns. Without a request it returns io.EOF: there
// are no more answers.
func (s *socket) exchange(requests []netlink.Message) (replies []netlink.Message, err error) {
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, err
	}
	defer func() {
		// There may be answers left that belong to no later request.
		switch {
		case err != nil && s.stays:
			s.drain()
		case err != nil:
			s.close()
		}
	}()
	if err := retryEINTR(func() error {
		return unix.Sendto(s.fd, datagram, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	if s.buf == nil {
		s.buf = make([]byte, answerSize)
	}
	for {
		var n int
		err := retryEINTR(func() (err error) {
			n, _, err = unix.Recvfrom(s.fd, s.buf, unix.MSG_DONTWAIT)
			return err
		})
		switch {
		case err == unix.EAGAIN:
			return replies, nil
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		}
		// The parsed messages point into what was read.
		messages, err := syscall.ParseNetlinkMessage(bytes.Clone(s.buf[:n]))
		if err != nil {
			return nil, fmt.Errorf("decoding an answer of nf_tables: %w", err)
		}
		for _, m := range messages {
			replies = append(replies, netlink.Message{
				Header: netlink.Header{
					Length: m.Header.Len, Type: netlink.HeaderType(m.Header.Type),
					Flags: netlink.HeaderFlags(m.Header.Flags), Sequence: m.Header.Seq,
					// The kernel names the socket's port; the library expects its own number.
					PID: requests[0].Header.PID,
				},
				Data: m.Data,
			})
		}
	}
}

// retryEINTR calls f until no signal interrupts it.
func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
