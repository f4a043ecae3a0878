package node

import (
	"errors"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"appliance/configs"
	"appliance/confine"
	"appliance/host"
)

// starting are the capabilities that are needed beside the lasting ones until the node has been opened: for priorities,
// and to make the bounding set smaller in the end.
var starting = [...]int{unix.CAP_SYS_NICE, unix.CAP_SETPCAP}

// lasting are the capabilities with which a node runs, as far as the process has them.
func lasting(cfg *configs.Config, witness, lockMemory bool) []int {
	// A reload may bring a load balancer with a low port, and must not need a restart for that.
	caps := []int{unix.CAP_NET_BIND_SERVICE}
	if len(cfg.VIPs) > 0 && !witness {
		caps = append(caps, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)
	}
	if cfg.Takeover && len(cfg.VIPs) == 0 { // rules take the port of the program that is to be replaced
		caps = append(caps, unix.CAP_NET_ADMIN)
	}
	if cfg.ProgramsOfOthers() {
		caps = append(caps, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL)
	}
	if lockMemory { // else the next growth beyond the limit would end the process
		caps = append(caps, unix.CAP_IPC_LOCK)
	}
	return caps
}

// rights are what the process gives up in two steps, each once, however often its node begins anew.
type rights struct {
	cfg         *configs.Config
	log         *slog.Logger
	gaveUpUsers bool // it could run programs as other users, and cannot any more
	sealed      bool
}

// newRights takes the first step. It comes before keys and certificates are read, so that what cannot be read again
// later is named at the start.
func newRights(cfg *configs.Config, log *slog.Logger) *rights {
	r := &rights{cfg: cfg, log: log}
	r.gaveUpUsers = slices.Contains(confine.Now().Capabilities, "SETUID") && !cfg.ProgramsOfOthers()
	r.giveUp(append(starting[:], lasting(cfg, false, lockedByCapability())...))
	return r
}

func (r *rights) giveUp(keep []int) {
	if err := confine.Keep(keep...); err != nil {
		r.log.Warn("runs with more privileges than it needs", "reason", err)
	}
}

// seal takes the last step, once everything is open.
func (r *rights) seal(witness bool) {
	if r.sealed {
		return
	}
	r.sealed = true
	r.giveUp(lasting(r.cfg, witness, lockedByCapability()))
	if err := confine.Seal(r.log); err != nil {
		r.log.Warn("runs with more privileges than it needs", "reason", err)
	}
	p := confine.Now()
	r.log.Debug("privileges", "user", p.User, "capabilities", p.Capabilities, "noNewPrivs", p.NoNewPrivs,
		"seccomp", p.Seccomp)
}

// errGaveUpUsers is of programs that a reload brings to a process that cannot become another user any more.
var errGaveUpUsers = errors.New("programs of tracks and hooks: when this node started there were none, so it gave up " +
	"what it takes to run them as another user; restart it, or write user: root")

// lockedByCapability reports whether only CAP_IPC_LOCK lets this process have as much memory as it locks.
func lockedByCapability() bool { return host.MemoryLocked() && !host.LockUnlimited() }
