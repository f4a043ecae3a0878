package flood

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A Gate reads the frames of one packet socket, and has the kernel drop those of machines that flood. One goroutine
// uses it.
type Gate struct {
	head  []bpf.Instruction // what comes before the admission of sources
	tail  []bpf.Instruction // what comes after it
	meter meter
}

// NewGate is the gate of a socket that hears of what head and tail, one after the other, accept. subjects is how many
// things one machine may say something about at once.
func NewGate(head, tail []bpf.Instruction, subjects int) *Gate {
	return &Gate{head: head, tail: tail, meter: meter{subjects: subjects}}
}

// Filter is the one to open the socket with.
func (g *Gate) Filter() ([]bpf.RawInstruction, error) {
	raw, err := bpf.Assemble(slices.Concat(g.head, admissionFilter(g.meter.admitted), g.tail))
	if err != nil {
		return nil, fmt.Errorf("flood: assemble filter: %w", err)
	}
	return raw, nil
}

// Frames calls handle with every frame until the socket is closed. A source is trusted for a while of which handle has
// returned true: nobody else can have sent the frame, and however much comes in its name, all of it is handled. flooded
// is told of machines whose frames the kernel drops from now on. After an error Frames may be called again.
func (g *Gate) Frames(
	c *packet.Conn, size int, flooded func(mac string), handle func(frame []byte) (trusted bool),
) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	b := make([]byte, size)
	var n int
	var failed error
	receive := func(fd uintptr) (done bool) {
		n, failed = unix.Read(int(fd), b)
		return failed != unix.EAGAIN && failed != unix.EINTR
	}
	var deadline time.Time
	for {
		if next := g.meter.next(); next != deadline {
			deadline = next
			if err := c.SetReadDeadline(deadline); err != nil {
				return err
			}
		}
		err := raw.Read(receive)
		changed := false
		switch {
		case isTimeout(err):
			changed = g.meter.look(time.Now())
		case err != nil || failed != nil:
			return cmp.Or(err, failed)
		case n < headerLen:
			continue
		default:
			now, mac := time.Now(), string(b[offSourceMAC:offSourceMAC+macLen])
			var wanted, flooder bool
			wanted, changed, flooder = g.meter.take(mac, now)
			if wanted && handle(b[:n]) {
				changed = g.meter.trust(mac, now) || changed
			}
			if flooder {
				flooded(mac)
			}
		}
		if changed {
			if err := g.admit(c); err != nil {
				return err
			}
		}
	}
}

func (g *Gate) admit(c *packet.Conn) error {
	filter, err := g.Filter()
	if err != nil {
		return err
	}
	if err := c.SetBPF(filter); err != nil {
		return fmt.Errorf("flood: set filter: %w", err)
	}
	return nil
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
