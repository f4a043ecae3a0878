package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft/conntrack"
	"appliance/nft/ruleset"
)

const (
	// maxRetries is how many refusals of one backend are turned into another
	// attempt before its quota is filled again: enough for the clients that come
	// until the backend is out of rotation. After that clients are refused: none
	// may wait without end where nobody takes backends out.
	maxRetries = 1000
	// A backend that was reported is monitored again after minWait, then after
	// twice as long each time, up to maxWait, while it goes on refusing.
	minWait, maxWait = time.Second, time.Minute
)

// A ResetMonitor sees which backends refuse connections of clients, by the packets
// that pass; checks alone would need several rounds. A rule matches the one packet
// that says so. It uses up a quota, and the kernel reports this once, until the
// quota is filled again. Packets of established connections cost two comparisons
// in each of two hooks, and wake up nobody.
type ResetMonitor struct {
	report func(balancer.Target)
	log    *slog.Logger
	now    func() time.Time

	applying    sync.Mutex            // held by apply all the time
	reconcilers [2]ruleset.Reconciler // in the order of ruleset.Families
	services    map[balancer.PlaneName][]monitoredService
	lastProblem string // that was logged

	mu     sync.Mutex // guards quotas, briefly
	quotas map[quotaID]*monitoredQuota
}

// A monitoredService is a service whose backends are monitored.
type monitoredService struct {
	balancer.Service
	retry Retry
}

// A Retry says whether, and where, a client that was refused is made to try again at
// once. It gets to another backend then, if there is one.
type Retry int

const (
	// NoRetry lets the client see the refusal.
	NoRetry Retry = iota
	// RetryByNAT is for connections that NAT translates: conntrack forgets a
	// connection that is refused, and takes the next attempt for a new one.
	RetryByNAT
	// RetryByIPVS is for connections of IPVS, which must see the refusal, or the
	// next attempt would go where the first did.
	RetryByIPVS
)

// A quotaID is how the kernel names a quota.
type quotaID struct {
	family nftables.TableFamily
	name   string
}

// A monitoredQuota is the quota of one backend of one frontend.
type monitoredQuota struct {
	target balancer.Target
	retry  string // another quota, which is filled together with this one
	// seen is when the quota was used up, due when it is to be filled again; due
	// is zero while the quota is full. wait is the time between the two.
	seen, due time.Time
	wait      time.Duration
}

// NewResetMonitor returns a ResetMonitor that calls report for each backend that
// refuses, from the goroutine of Run. Log gets a line if the kernel cannot report;
// nil means slog.Default().
func NewResetMonitor(report func(balancer.Target), log *slog.Logger, owner *ruleset.Owner) *ResetMonitor {
	if log == nil {
		log = slog.Default()
	}
	return &ResetMonitor{report: report, log: log, now: time.Now,
		reconcilers: [2]ruleset.Reconciler{{Owner: owner}, {Owner: owner}},
		services:    make(map[balancer.PlaneName][]monitoredService)}
}

// Monitor returns the plane with its backends monitored.
func (r *ResetMonitor) Monitor(plane balancer.Plane, retry Retry) balancer.Plane {
	return monitoredPlane{plane, r, retry}
}

type monitoredPlane struct {
	balancer.Plane
	monitor *ResetMonitor
	retry   Retry
}

// Apply implements balancer.Plane. If the rules that monitor cannot be made, the
// plane still works; backends that refuse are found later.
func (w monitoredPlane) Apply(ctx context.Context, services []balancer.Service) (repaired int, err error) {
	repaired, err = w.Plane.Apply(ctx, services)
	n := w.monitor.apply(w.Name(), services, w.retry)
	return repaired + n, err
}

// Close implements balancer.Plane.
func (w monitoredPlane) Close() error {
	err := w.Plane.Close()
	w.monitor.apply(w.Name(), nil, NoRetry)
	return err
}

// apply makes services those of the plane that are monitored.
func (r *ResetMonitor) apply(plane balancer.PlaneName, services []balancer.Service, retry Retry) (repaired int) {
	r.applying.Lock()
	defer r.applying.Unlock()
	var monitored []monitoredService
	for _, s := range cloneServices(services) {
		monitored = append(monitored, monitoredService{s, retry})
	}
	r.services[plane] = monitored
	var all []monitoredService
	for _, of := range r.services {
		all = append(all, of...)
	}
	r.trackQuotas(all)
	var errs []error
	for i, f := range ruleset.Families() {
		n, err := r.reconcilers[i].Apply(resetTable(f, all))
		repaired += n
		errs = append(errs, err)
	}
	r.logProblem(errors.Join(errs...))
	return repaired
}

// logProblem logs a problem once, and its end. Called by apply only.
func (r *ResetMonitor) logProblem(err error) {
	switch {
	case err == nil && r.lastProblem != "":
		r.lastProblem = ""
		r.log.Info("backends that refuse clients are seen at once again")
	case err != nil && err.Error() != r.lastProblem:
		r.lastProblem = err.Error()
		r.log.Warn("backends that refuse clients are found by the checks alone, which takes longer", "reason", err)
	}
}

// trackQuotas sets whose quota each one is.
func (r *ResetMonitor) trackQuotas(all []monitoredService) {
	r.mu.Lock()
	defer r.mu.Unlock()
	quotas := make(map[quotaID]*monitoredQuota)
	for _, s := range all {
		for _, b := range conntrack.Allowed(s.Service) {
			id := quotaID{tableFamily(b), quotaName(s.Frontend, b)}
			q := r.quotas[id]
			if q == nil {
				q = &monitoredQuota{}
			}
			q.target = balancer.Target{LoadBalancer: s.LoadBalancer, Backend: b}
			q.retry = s.retryQuota(b)
			quotas[id] = q
		}
	}
	r.quotas = quotas
}

// Close removes the rules.
func (r *ResetMonitor) Close() error {
	var errs []error
	for i, f := range ruleset.Families() {
		_, err := r.reconcilers[i].Remove(resetTable(f, nil))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Run reports backends that refuse until ctx ends, with nil, or until the kernel
// reports no more.
func (r *ResetMonitor) Run(ctx context.Context) error {
	conn, stop, err := ruleset.Events(ctx)
	if err != nil {
		return err
	}
	defer stop()
	r.checkQuotas()
	for {
		// The only reason to wake up by itself is a quota that has to be filled.
		_ = conn.SetReadDeadline(r.refill())
		if ctx.Err() != nil {
			return nil // the line above may have overwritten the deadline in the past
		}
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			r.checkQuotas() // the kernel had no room for an event
			continue
		case isTimeout(err):
			continue
		case err != nil:
			return fmt.Errorf("monitoring refusals: %w", err)
		}
		for _, m := range messages {
			if id, ok := usedUp(m); ok {
				r.depleted(id)
			}
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// depleted reports the backend whose quota has been used up.
func (r *ResetMonitor) depleted(id quotaID) {
	r.mu.Lock()
	q := r.quotas[id]
	now := r.now()
	// Run's first look and an event may both see the same quota.
	if q == nil || !q.due.IsZero() && now.Sub(q.seen) < minWait {
		r.mu.Unlock()
		return
	}
	if q.wait = 2 * q.wait; q.wait == 0 || now.Sub(q.seen) > q.wait+maxWait {
		q.wait = minWait
	}
	q.wait = min(q.wait, maxWait)
	q.seen, q.due = now, now.Add(q.wait)
	target := q.target
	r.mu.Unlock()
	r.report(target)
}

// checkQuotas asks which quotas are used up: events may have been lost.
func (r *ResetMonitor) checkQuotas() {
	conn, err := ruleset.Dial()
	if err != nil {
		return
	}
	for _, f := range ruleset.Families() {
		t := resetTable(f, nil)
		objects, err := conn.GetObjects(t.Kernel())
		if err != nil {
			continue // there are none
		}
		for _, o := range objects {
			if q, ok := o.(*nftables.QuotaObj); ok && q.Consumed >= q.Bytes {
				r.depleted(quotaID{t.Family, q.Name})
			}
		}
	}
}

// refill fills the quotas that are due, and returns when the next one is due, or
// zero if none is used up.
func (r *ResetMonitor) refill() (next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []quotaID
	add := func(id quotaID, name string) {
		if name != "" {
			due = append(due, quotaID{id.family, name})
		}
	}
	now := r.now()
	for id, q := range r.quotas {
		switch {
		case q.due.IsZero():
		case !q.due.After(now):
			q.due = time.Time{}
			add(id, id.name)
			add(id, q.retry)
		case next.IsZero() || q.due.Before(next):
			next = q.due
		}
	}
	if len(due) == 0 {
		return next
	}
	conn, err := ruleset.Dial()
	if err != nil {
		return next
	}
	for _, id := range due {
		t := &nftables.Table{Family: id.family, Name: ruleset.ResetTable}
		// A quota may be gone with its backend, or full since the table was replaced.
		_, _ = conn.ResetObject(&nftables.NamedObj{Table: t, Name: id.name, Type: nftables.ObjTypeQuota})
	}
	return next
}

// usedUp says whether m reports that a quota of ours has been used up.
func usedUp(m netlink.Message) (id quotaID, ok bool) {
	const depleted = 1 << 1 // NFT_QUOTA_F_DEPLETED in linux/netfilter/nf_tables.h
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWOBJ || len(m.Data) < ruleset.NfgenmsgLen {
		return id, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[ruleset.NfgenmsgLen:])
	if err != nil {
		return id, false
	}
	ad.ByteOrder = binary.BigEndian
	ours := false
	var flags uint32
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_OBJ_TABLE:
			ours = ad.String() == ruleset.ResetTable
		case unix.NFTA_OBJ_NAME:
			id.name = ad.String()
		case unix.NFTA_OBJ_DATA:
			ad.Nested(func(nad *netlink.AttributeDecoder) error {
				for nad.Next() {
					if nad.Type() == unix.NFTA_QUOTA_FLAGS {
						flags = nad.Uint32()
					}
				}
				return nil
			})
		}
	}
	id.family = nftables.TableFamily(m.Data[0])
	return id, ad.Err() == nil && ours && flags&depleted != 0
}
