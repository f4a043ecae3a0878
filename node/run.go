package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appliance/arp"
	"appliance/configs"
	"appliance/connlog"
	"appliance/hook"
	"appliance/host"
	"appliance/ipvs"
	"appliance/nft"
	"appliance/nft/tunnel"
	"appliance/node/lifecycle"
	"appliance/raft"
	"appliance/routes"
	"appliance/status/web"
)

// Options say what a node runs.
type Options struct {
	Config  *configs.Config
	File    string                          // the file that Config was read from; empty: there is none
	Reload  func() (*configs.Config, error) // reads the configuration again
	Version string
	Log     io.Writer
}

// Run puts a configuration into force until ctx ends. It finds whatever is wrong before it touches anything on
// the host.
func Run(ctx context.Context, o Options) error {
	cfg := o.Config
	book, copies, err := openLog(o.Log, cfg.Log)
	if err != nil {
		return err
	}
	if copies != nil {
		// Outlives ctx, so that the last lines are written.
		copying, end := context.WithCancel(context.WithoutCancel(ctx))
		var running sync.WaitGroup
		running.Go(func() { _ = copies.Run(copying) }) // it has no error
		defer running.Wait()
		defer end()
	}
	for _, w := range cfg.Warnings {
		book.Warn(w.String())
	}
	unix.Umask(0o077) // what it writes is nobody else's
	host.Prioritize(book.Logger)
	rights := newRights(cfg, book.Logger)
	// Where a node ends and begins anew nobody else listens to these for a moment, and they would end the process.
	held := make(chan os.Signal, 1)
	signal.Notify(held, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(held)
	var moved time.Time // when the node last had to begin anew
	for {
		next, err := runOnce(ctx, o, cfg, book, copies, rights)
		switch {
		case next != nil && ctx.Err() == nil:
			cfg, moved = next, time.Now()
		case err == nil || ctx.Err() != nil || moved.IsZero() || time.Since(moved) > returnWithin:
			return err
		default:
			// The host is being changed, and may not be as it is to be yet.
			book.Warn("the node cannot begin anew yet, and tries again", "error", err)
			select {
			case <-ctx.Done():
				return err
			case <-time.After(time.Second):
			}
		}
	}
}

// openLog opens the program's log, and what writes its lines elsewhere too; nil if nothing does.
func openLog(stderr io.Writer, s configs.LogSettings) (*host.Log, *connlog.Sink, error) {
	// A line that cannot be written elsewhere says so here only.
	plain, err := host.NewLog(stderr, s.Format, s.Level, nil)
	if err != nil || s.Copy == "" {
		return plain, nil, err
	}
	copies := connlog.New(connlog.Config{
		To: s.Copy, Facility: slices.Index(connlog.Facilities, s.Facility), What: "this program", Log: plain.Logger,
	})
	book, err := host.NewLog(stderr, s.Format, s.Level, copies.Log)
	return book, copies, err
}

// runOnce runs a node until ctx ends. It returns the configuration with which the node is to begin anew where a VIP
// belongs on another interface than it began with, or where its group has ended in favour of another one or takes a
// longer heartbeat.
func runOnce(
	ctx context.Context, o Options, cfg *configs.Config, book *host.Log, copies *connlog.Sink, rights *rights,
) (again *configs.Config, err error) {
	log := book.Logger
	site, err := survey(cfg)
	if err != nil {
		return nil, err
	}
	if err := awaitAddress(ctx, site.self.Address, log); err != nil {
		return nil, err
	}
	n, err := newNode(cfg, site, o.Version, log)
	if err != nil {
		return nil, err
	}
	if n.light() {
		host.PrioritizeLight(log)
	}
	n.gaveUpUsers, n.copies = rights.gaveUpUsers, copies
	defer func() {
		if err := n.close(); err != nil {
			log.Warn("something stays behind; `appliance cleanup` removes it", "error", err)
		}
	}()
	socket, err := web.ListenUnix(cfg.Socket)
	if err != nil {
		return nil, err
	}
	if err := n.observer.Listen(); err != nil {
		socket.Close()
		return nil, err
	}
	rights.seal(n.witness())
	if old := host.OlderKernel(); old != "" {
		log.Warn("this kernel is older than any that the appliance was tried on; what it lacks is found by trying, and a "+
			"data plane without it is chosen: `appliance doctor` and `appliance status --why` say which", "kernel", old,
			"tried", host.TriedKernel)
	}
	log.Info("appliance starts", "version", o.Version, "id", site.self.ID, "role", site.self.Role, "vips", cfg.VIPs)

	reload := newReloader(o.File, cfg, o.Reload, log)
	reload.apply = func(ctx context.Context, next *configs.Config) error {
		if err := n.put(ctx, next); err != nil {
			return err
		}
		return book.Reconfigure(next.Log.Level)
	}
	parts := append(n.observer.Parts(),
		lifecycle.Part{Name: "log level", Run: book.FollowSignals},
		lifecycle.Part{Name: "status", Run: func(ctx context.Context) error {
			return web.Serve(ctx, socket, n.handler(book, reload.handle, n.handleBackends, n.handlePeers), log)
		}},
		lifecycle.Part{Name: "reload", Run: reload.run},
		// Among the first to start, so that the hooks hear of the end.
		lifecycle.Part{Name: "hooks", Run: n.hooks.Run},
		// What is above only shows and tells; what is below changes the host.
		lifecycle.Gate(n.preflight),
		// The first that follows is the last that stops.
		lifecycle.Part{Name: "notice of the stop", Run: func(part context.Context) error {
			<-part.Done()
			if ctx.Err() != nil { // and not because something failed, or to begin anew
				n.tell(hook.Notice{Name: hook.Stopped})
			}
			return nil
		}},
	)
	err = lifecycle.RunInOrder(ctx, append(parts, n.parts()...))
	if ctx.Err() != nil && err == nil {
		log.Info("appliance has stopped", "after", time.Since(n.started).Round(time.Second))
	}
	if errors.Is(err, errMoved) || errors.Is(err, raft.ErrYielded) || errors.Is(err, raft.ErrHeartbeat) ||
		errors.Is(err, raft.ErrTwice) {
		log.Info("this node has ended, to begin anew", "because", err)
		return reload.current, nil
	}
	return nil, err
}

// errMoved ends a run of a node because a VIP belongs on another interface than it began with.
var errMoved = errors.New("the interface of a virtual address is another now")

const (
	// lookAgain is the time between two looks for the interface of a VIP while the one that it has is at fault, and
	// movedFor how long the same other one must have been found: an address is moved in several steps.
	lookAgain = 250 * time.Millisecond
	movedFor  = time.Second

	// returnWithin bounds how long a node that begins anew tries to, until whoever started the process decides.
	returnWithin = 30 * time.Second
)

// followInterfaces returns errMoved when the interface of a VIP is at fault, and the rule by which it was chosen now
// leads to another one for good: its address has moved to a bridge, or it has been renamed.
func (n *node) followInterfaces(ctx context.Context) error {
	var m mover
	for {
		fault, changed := n.wire.Fault()
		var again <-chan time.Time
		if fault != (arp.Fault{}) {
			again = time.After(lookAgain)
			found, err := findInterfaces(n.cfg, n.site.self)
			if err != nil {
				found = nil
			}
			if m.moved(n.site.vips, found, time.Now()) {
				n.log.Warn("the virtual addresses are to be answered on another interface; this node begins anew there",
					"reason", fault.String(), "interfaces", fmt.Sprint(found))
				return errMoved
			}
		} else {
			m = mover{}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}

// A mover notices that the VIPs' interfaces are others for long enough.
type mover struct {
	found []arp.VIP
	since time.Time
}

func (m *mover) moved(before, found []arp.VIP, now time.Time) bool {
	if len(found) == 0 || slices.Equal(found, before) {
		*m = mover{}
		return false
	}
	if !slices.Equal(found, m.found) {
		m.found, m.since = found, now
	}
	return now.Sub(m.since) >= movedFor
}

// Cleanup removes every address, service and rule that a crashed appliance left in the kernel, and says what it
// removed. vips are for kernels before 5.18, which do not remember whose an address is.
func Cleanup(vips []netip.Addr) (removed []string, err error) {
	var problems []error
	for _, room := range []func() ([]string, error){
		// The address first: nobody reaches a forwarder that loses its rules.
		func() ([]string, error) { return arp.Cleanup(vips) },
		routes.Cleanup,
		ipvs.Cleanup,
		tunnel.Cleanup,
		nft.Cleanup,
	} {
		some, err := room()
		removed = append(removed, some...)
		problems = append(problems, err)
	}
	return removed, errors.Join(problems...)
}
