package arp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	rawpacket "github.com/mdlayher/packet"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

// nodeEnv tells the test binary to be a node: a process of its own, all of whose threads are in the namespace of its
// host.
const nodeEnv = "ARP_TEST_NODE"

func TestMain(m *testing.M) {
	if conf := os.Getenv(nodeEnv); conf != "" {
		if err := runNode(conf); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		if err := goleak.Find(); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

type nodeConfig struct {
	VIPs     []VIP
	Lifetime time.Duration
}

// runNode executes lines on stdin and answers each with one on stdout.
func runNode(conf string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	w, err := Open(Config{
		VIPs: c.VIPs, Lifetime: c.Lifetime, Silencer: NewSysctls(""),
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Run(ctx) })
	select {
	case <-w.Ready():
	case <-ctx.Done():
		return g.Wait()
	}
	fmt.Println("ready")

	var lease atomic.Int64 // its end, by the monotonic clock
	clock := time.Now()
	setLease := func(d time.Duration) { lease.Store(int64(time.Since(clock) + d)) }
	endTenure := func() error { return nil }
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var out string
		command, word, _ := strings.Cut(in.Text(), " ")
		switch command {
		case "answer":
			tctx, end := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- w.Answer(tctx, func() bool { return time.Since(clock) < time.Duration(lease.Load()) }) }()
			endTenure = func() error { end(); return <-done }
		case "silent":
			if err := endTenure(); err != nil {
				return err
			}
			endTenure = func() error { return nil }
		case "lease":
			d := 24 * time.Hour
			if word != "" {
				if d, err = time.ParseDuration(word); err != nil {
					return err
				}
			}
			setLease(d)
		case "nolease":
			setLease(0)
		case "announce":
			w.Announce()
		case "carrier":
			f, _ := w.Fault()
			out = fmt.Sprint(f == Fault{})
		case "fault":
			f, _ := w.Fault()
			out = f.String()
		case "ask":
			found, err := w.Ask(ctx)
			if err != nil {
				return err
			}
			for _, c := range found {
				out += c.MAC + " "
			}
		case "received": // frames that passed the filter since the question before
			n := uint32(0)
			for _, r := range w.responders {
				r.mu.Lock()
				s := r.current
				r.mu.Unlock()
				frames, ok := s.(interface {
					stats() (*rawpacket.Stats, error)
				})
				if !ok {
					continue
				}
				stats, err := frames.stats()
				if err != nil {
					return err
				}
				n += stats.Packets
			}
			out = fmt.Sprint(n)
		case "status":
			b, err := json.Marshal(w.Status())
			if err != nil {
				return err
			}
			out = string(b)
		}
		fmt.Println("ok", out)
	}
	if err := endTenure(); err != nil {
		return err
	}
	stop()
	return g.Wait()
}

// A node is a child process that keeps VIPs on its host.
type node struct {
	*host
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	end bool
}

// start runs a node on h and waits until it is ready.
func (h *host) start(lifetime time.Duration, vips ...netip.Addr) *node {
	h.lan.t.Helper()
	conf := nodeConfig{Lifetime: lifetime}
	for _, v := range vips {
		conf.VIPs = append(conf.VIPs, VIP{v, "eth0"})
	}
	return h.startNode(conf)
}

func (h *host) startNode(conf nodeConfig) *node {
	t := h.lan.t
	t.Helper()
	b, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{host: h, cmd: exec.Command("/proc/self/exe")}
	n.cmd.Env = append(os.Environ(), nodeEnv+"="+string(b))
	n.cmd.Stderr = t.Output()
	n.cmd.WaitDelay = 10 * time.Second
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.out = bufio.NewReader(out)
	onThread(t, func() error {
		if err := netns.Set(h.ns); err != nil {
			return err
		}
		return n.cmd.Start() // in the namespace of the thread that starts it
	})
	t.Cleanup(func() {
		if !n.end {
			n.kill()
		}
	})
	if line := n.line(); line != "ready" {
		t.Fatalf("node: %s", line)
	}
	return n
}

func (n *node) line() string {
	n.lan.t.Helper()
	line, err := n.out.ReadString('\n')
	if err != nil {
		n.lan.t.Fatalf("node ended: %v", err)
	}
	return strings.TrimSpace(line)
}

// do sends the node a command and returns its answer.
func (n *node) do(command string) string {
	n.lan.t.Helper()
	if _, err := fmt.Fprintln(n.in, command); err != nil {
		n.lan.t.Fatalf("node: %v", err)
	}
	return strings.TrimSpace(strings.TrimPrefix(n.line(), "ok"))
}

func (n *node) status() (s []VIPStatus) {
	n.lan.t.Helper()
	if err := json.Unmarshal([]byte(n.do("status")), &s); err != nil {
		n.lan.t.Fatal(err)
	}
	return s
}

func (s *frameSocket) stats() (*rawpacket.Stats, error) { return s.conn.Stats() }

func (n *node) hold()    { n.lan.t.Helper(); n.do("lease"); n.do("answer") }
func (n *node) release() { n.lan.t.Helper(); n.do("silent") }

// stop ends the node as its operator would. It fails the test on an error, a goroutine that is left, or a race.
func (n *node) stop() {
	n.lan.t.Helper()
	n.end = true
	n.in.Close()
	rest, _ := io.ReadAll(n.out)
	if err := n.cmd.Wait(); err != nil {
		n.lan.t.Fatalf("node: %v: %s", err, rest)
	}
}

func (n *node) kill() {
	n.end = true
	_ = n.cmd.Process.Kill()
	var exit *exec.ExitError
	if err := n.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		n.lan.t.Error(err)
	}
}

func (n *node) signal(s syscall.Signal) {
	n.lan.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.lan.t.Fatal(err)
	}
}
