package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a program that runs inside a machine.
type Process struct {
	// Cmd is what was started.
	Cmd *exec.Cmd

	done chan struct{}
	err  error
}

// Start starts cmd inside the machine, in a session of its own, as a service
// manager does, so that a Ctrl-C in the terminal reaches the lab's owner only. The process dies
// with this one, however this one ends: the kernel sends it SIGKILL when the
// thread that started it is gone, and the lab keeps that thread until Close.
// It must not be waited for by cmd.Wait; see Process.Wait.
func (n *Machine) Start(cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Setsid = true

	if cmd.WaitDelay == 0 {
		// A grandchild may keep the output open after the process died.
		cmd.WaitDelay = time.Second
	}

	// Held while starting, so that Close either sees the process or comes
	// first.
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		return nil, errClosed
	}
	if err := n.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("lab: start %s in %s: %w", cmd.Path, n.Name, err)
	}
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	n.processes[p] = true
	go p.wait()
	return p, nil
}

func (p *Process) wait() {
	p.err = p.Cmd.Wait()
	close(p.done)
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns what exec.Cmd.Wait says
// about it.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends sig to the process. Sending to one that has ended is an error.
func (p *Process) Signal(sig os.Signal) error { return p.Cmd.Process.Signal(sig) }

// SignalGroup sends sig to the process and to all that it started, unless it
// has ended.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	select {
	case <-p.done:
		return os.ErrProcessDone
	default:
		return syscall.Kill(-p.Cmd.Process.Pid, sig)
	}
}

// Kill sends SIGKILL to the process and to all that it started, at once, and
// waits for it.
func (p *Process) Kill() {
	p.SignalGroup(syscall.SIGKILL)
	<-p.done
}

func (n *Machine) killAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopped = true
	for p := range n.processes {
		p.Kill()
	}
}

// Listen listens on an address of the machine. The unspecified IPv6 address
// listens for IPv4 too.
func (n *Machine) Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	// With the network "tcp", the net package would ask once, in whatever
	// machine comes first, what the kernel can do, and takes the lack of
	// 127.0.0.1 for the lack of IPv6 sockets that speak IPv4.
	network := "tcp6"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if addr.Addr() != netip.IPv6Unspecified() {
			return nil
		}
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
		})
		return errors.Join(cerr, err)
	}}
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = lc.Listen(ctx, network, addr.String())
		return err
	})
	return ln, err
}

// Dial connects to addr from inside the machine.
func (n *Machine) Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp", addr.String())
		return err
	})
	return c, err
}

// WaitPort waits until something in the network of the machine accepts
// connections on addr.
func (n *Machine) WaitPort(ctx context.Context, addr netip.AddrPort) error {
	for {
		c, err := n.Dial(ctx, addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: nothing answers on %s from %s: %w", addr, n.Name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
