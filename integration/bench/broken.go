package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

const (
	// A new connection each interval, and how long it may take at most.
	brokenInterval = 5 * time.Millisecond
	brokenPatience = 5 * time.Second
	// brokenFor is how long one of the three servers is broken.
	brokenFor = 10 * time.Second
	// slow is what a user notices.
	slow = 200 * time.Millisecond
)

// A brokenFigure is what clients see of one server that fails.
type brokenFigure struct {
	requests, failed, slow int
	// lastBad is when the last connection began that failed or was slow,
	// counted from the fault.
	lastBad time.Duration
	// tried is how many connections to the broken server began, and lastTry
	// when. tried200 is how many began later than 200 ms after the fault.
	tried, tried200 uint64
	lastTry         time.Duration
}

func (b brokenFigure) String() string {
	return fmt.Sprintf("%d requests, %d failed, %d slow, the last at %d ms; %d SYNs to it, %d after 200 ms, "+
		"the last at %d ms",
		b.requests, b.failed, b.slow, b.lastBad.Milliseconds(), b.tried, b.tried200, b.lastTry.Milliseconds())
}

// break1 breaks the first server for a while: bkill makes it refuse, bhang
// makes every packet to it vanish.
func (f *field) break1(ctx context.Context, fault string, w *forwarder) (b brokenFigure, err error) {
	server := f.servers[0]
	verdict := ""
	if fault == "bhang" {
		verdict = "drop"
	}
	count := fmt.Sprintf("table ip broken {\n counter syns { }\n chain input {\n type filter hook input priority 0;\n"+
		" tcp dport %[1]d tcp flags & (syn|ack) == syn counter name syns\n tcp dport %[1]d %[2]s\n }\n"+
		"}\n", serverPort, verdict)
	if verdict == "" {
		count = strings.Replace(count, fmt.Sprintf(" tcp dport %d \n", serverPort), "", 1)
	}
	nft := func(rules string) error {
		return server.Do(func() error {
			cmd := exec.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(rules)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("nft: %w\n%s", err, out)
			}
			return nil
		})
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	var broken time.Time
	ask := func() {
		began := time.Now()
		err := request(ctx, f, w.to[0])
		took := time.Since(began)
		mu.Lock()
		defer mu.Unlock()
		if broken.IsZero() {
			return
		}
		b.requests++
		if err != nil {
			b.failed++
		} else if took > slow {
			b.slow++
		}
		if err != nil || took > slow {
			b.lastBad = max(b.lastBad, began.Sub(broken))
		}
	}
	running, stop := context.WithCancel(ctx)
	defer all.Wait()
	defer stop()
	all.Go(func() {
		tick := time.NewTicker(brokenInterval)
		defer tick.Stop()
		for {
			select {
			case <-running.Done():
				return
			case <-tick.C:
				all.Go(ask)
			}
		}
	})
	if err := sleep(ctx, 3*time.Second); err != nil {
		return b, err
	}
	if fault == "bkill" {
		f.stations[0].Kill()
	}
	at := time.Now()
	if err := nft(count); err != nil {
		return b, err
	}
	mu.Lock()
	broken = at
	mu.Unlock()
	var last uint64
	for time.Since(at) < brokenFor {
		var n uint64
		err := server.Do(func() (err error) {
			n, err = syns()
			return err
		})
		if err != nil {
			return b, err
		}
		since := time.Since(at)
		if n != last {
			b.lastTry = since
			if since > slow {
				b.tried200 += n - last
			}
			last = n
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return b, err
		}
	}
	b.tried = last
	stop()
	all.Wait()
	if err := nft("delete table ip broken\n"); err != nil {
		return b, err
	}
	if fault == "bkill" {
		if f.stations[0], err = f.station(server); err != nil {
			return b, err
		}
	}
	return b, sleep(ctx, 12*time.Second) // until everybody trusts it again
}

// request is one connection with one request.
func request(ctx context.Context, f *field, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, brokenPatience)
	defer cancel()
	c, err := f.client.Dial(ctx, to)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if _, err := c.Write(slices.Concat([]byte{'C'}, make([]byte, 127))); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, struct{ net.Conn }{c})
	if err == nil && n != 256 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// syns reads the counter of break1 in the thread's machine.
func syns() (uint64, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	obj, err := c.GetObject(&nftables.NamedObj{
		Table: &nftables.Table{Name: "broken", Family: nftables.TableFamilyIPv4}, Name: "syns", Type: nftables.ObjTypeCounter,
	})
	if err != nil {
		return 0, err
	}
	switch o := obj.(type) {
	case *nftables.NamedObj:
		if n, ok := o.Obj.(*expr.Counter); ok {
			return n.Packets, nil
		}
	case *nftables.CounterObj:
		return o.Packets, nil
	}
	return 0, errors.New("the counter is none")
}
