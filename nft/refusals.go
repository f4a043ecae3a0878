package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

const (
	// againMost is how many refusals of one backend are turned into another
	// attempt before Refusals looks at it again: a burst of clients that come
	// until the backend is out of rotation. After that many, clients are refused:
	// none must wait without end where nobody takes backends out.
	againMost = 1000
	// A backend that was reported is looked at again after shyLeast, then after
	// twice as long each time, up to shyMost, while it goes on refusing.
	shyLeast, shyMost = time.Second, time.Minute
)

// Refusals sees which backends refuse connections of clients, by the packets
// that pass: the checks alone would need several of their rounds. A rule looks
// for the one packet that says so, and a quota that it uses up makes the kernel tell
// us, once, until the quota is filled again. Established connections cost two
// comparisons per packet in each of two hooks, and nothing is woken up by them.
type Refusals struct {
	report func(balancer.Target)
	log    *slog.Logger
	now    func() time.Time

	applying sync.Mutex // held by limit for all its time
	keep     [2]keeper  // by the order of families
	want     map[balancer.PlaneName][]watchedService
	said     string // the last problem that was logged

	mu    sync.Mutex // guards quota, briefly
	quota map[quotaID]*watchedQuota
}

// A watchedService is a service whose backends' refusals are of interest.
type watchedService struct {
	balancer.Service
	again Again
}

// Again says whether, and where, a client that was refused is made to try again
// at once. It gets to another backend then, where there is one.
type Again int

const (
	// Refused it is told.
	Refused Again = iota
	// AgainByNAT is for connections that NAT translates: conntrack forgets one
	// that is refused, and the next attempt is new to it.
	AgainByNAT
	// AgainByIPVS is for those of IPVS, which has to see the refusal, or the next
	// attempt would go where the first did.
	AgainByIPVS
)

// A quotaID is how the kernel names a quota that was used up.
type quotaID struct {
	family nftables.TableFamily
	name   string
}

// watchedQuota is one backend of one frontend.
type watchedQuota struct {
	target balancer.Target
	again  string // another quota that is filled with it
	// seen is when it was used up, due when it is to be filled again; zero
	// while it is full. shy is the time between the two.
	seen, due time.Time
	shy       time.Duration
}

// NewRefusals makes a Refusals that calls report for each backend that refuses, from
// the goroutine of Run. Log gets a line if the kernel cannot tell; nil means
// slog.Default().
func NewRefusals(report func(balancer.Target), log *slog.Logger) *Refusals {
	if log == nil {
		log = slog.Default()
	}
	return &Refusals{report: report, log: log, now: time.Now, want: make(map[balancer.PlaneName][]watchedService)}
}

// Watch is plane with its backends watched.
func (r *Refusals) Watch(plane balancer.Plane, again Again) balancer.Plane {
	return watchedPlane{plane, r, again}
}

type watchedPlane struct {
	balancer.Plane
	refusals *Refusals
	again    Again
}

// Apply implements balancer.Plane. Without the rules for refusals the plane
// works as well, only later.
func (w watchedPlane) Apply(ctx context.Context, services []balancer.Service) (repaired int, err error) {
	repaired, err = w.Plane.Apply(ctx, services)
	n := w.refusals.limit(w.Name(), services, w.again)
	return repaired + n, err
}

// Close implements balancer.Plane.
func (w watchedPlane) Close() error {
	err := w.Plane.Close()
	w.refusals.limit(w.Name(), nil, Refused)
	return err
}

// limit makes the rules those of services, for that plane.
func (r *Refusals) limit(plane balancer.PlaneName, services []balancer.Service, again Again) (repaired int) {
	r.applying.Lock()
	defer r.applying.Unlock()
	var watched []watchedService
	for _, s := range clone(services) {
		watched = append(watched, watchedService{s, again})
	}
	r.want[plane] = watched
	var all []watchedService
	for _, of := range r.want {
		all = append(all, of...)
	}
	r.remember(all)
	var errs []error
	for i, f := range families() {
		n, err := r.keep[i].apply(refusals(f, all))
		repaired += n
		errs = append(errs, err)
	}
	r.say(errors.Join(errs...))
	return repaired
}

// say logs a problem once, and its end. Called by limit only.
func (r *Refusals) say(err error) {
	switch {
	case err == nil && r.said != "":
		r.said = ""
		r.log.Info("backends that refuse clients are seen at once again")
	case err != nil && err.Error() != r.said:
		r.said = err.Error()
		r.log.Warn("backends that refuse clients are found by the checks alone, which takes longer", "reason", err)
	}
}

// remember knows whose each quota is.
func (r *Refusals) remember(all []watchedService) {
	r.mu.Lock()
	defer r.mu.Unlock()
	quota := make(map[quotaID]*watchedQuota)
	for _, s := range all {
		for _, b := range allowed(s.Service) {
			id := quotaID{tableFamily(b), refusedName(s.Frontend, b)}
			q := r.quota[id]
			if q == nil {
				q = &watchedQuota{}
			}
			q.target = balancer.Target{LoadBalancer: s.LoadBalancer, Backend: b}
			q.again = s.againQuota(b)
			quota[id] = q
		}
	}
	r.quota = quota
}

// Close removes the rules.
func (r *Refusals) Close() error {
	var errs []error
	for i, f := range families() {
		_, err := r.keep[i].remove(refusals(f, nil))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Run reports backends that refuse until ctx ends, or until the kernel cannot
// be listened to.
func (r *Refusals) Run(ctx context.Context) error {
	conn, stop, err := events(ctx)
	if err != nil {
		return err
	}
	defer stop()
	r.look()
	for {
		// Only while a quota has to be filled again is there a reason to wake up.
		_ = conn.SetReadDeadline(r.refill())
		if ctx.Err() != nil {
			return nil // the deadline of its end may have been overwritten
		}
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			r.look() // the kernel had no room for what it had to tell
			continue
		case isTimeout(err):
			continue
		case err != nil:
			return fmt.Errorf("watching for refusals: %w", err)
		}
		for _, m := range messages {
			if id, ok := usedUp(m); ok {
				r.refused(id)
			}
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// refused is told that a quota has been used up.
func (r *Refusals) refused(id quotaID) {
	r.mu.Lock()
	q := r.quota[id]
	if q == nil {
		r.mu.Unlock()
		return
	}
	now := r.now()
	if q.shy = 2 * q.shy; q.shy == 0 || now.Sub(q.seen) > q.shy+shyMost {
		q.shy = shyLeast
	}
	q.shy = min(q.shy, shyMost)
	q.seen, q.due = now, now.Add(q.shy)
	target := q.target
	r.mu.Unlock()
	r.report(target)
}

// look asks which quotas are used up: nobody may have been told.
func (r *Refusals) look() {
	conn, err := dial()
	if err != nil {
		return
	}
	for _, f := range families() {
		t := refusals(f, nil)
		objects, err := conn.GetObjects(t.kernel())
		if err != nil {
			continue // there are none
		}
		for _, o := range objects {
			if q, ok := o.(*nftables.QuotaObj); ok && q.Consumed >= q.Bytes {
				r.refused(quotaID{t.family, q.Name})
			}
		}
	}
}

// refill fills the quotas that are due, and returns when the next one is; zero
// if none is used up.
func (r *Refusals) refill() (next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []quotaID
	add := func(id quotaID, name string) {
		if name != "" {
			due = append(due, quotaID{id.family, name})
		}
	}
	now := r.now()
	for id, q := range r.quota {
		switch {
		case q.due.IsZero():
		case !q.due.After(now):
			q.due = time.Time{}
			add(id, id.name)
			add(id, q.again)
		case next.IsZero() || q.due.Before(next):
			next = q.due
		}
	}
	if len(due) == 0 {
		return next
	}
	conn, err := dial()
	if err != nil {
		return next
	}
	for _, id := range due {
		t := &nftables.Table{Family: id.family, Name: refusalTable}
		// They may be gone with their backend, or full since the table was made anew.
		_, _ = conn.ResetObject(&nftables.NamedObj{Table: t, Name: id.name, Type: nftables.ObjTypeQuota})
	}
	return next
}

// usedUp tells whether m says that a quota of ours has been used up.
func usedUp(m netlink.Message) (id quotaID, ok bool) {
	const depleted = 1 << 1 // NFT_QUOTA_F_DEPLETED in linux/netfilter/nf_tables.h
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWOBJ || len(m.Data) < nfgenmsgLen {
		return id, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
	if err != nil {
		return id, false
	}
	ad.ByteOrder = binary.BigEndian
	ours := false
	var flags uint32
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_OBJ_TABLE:
			ours = ad.String() == refusalTable
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

func tableFamily(a netip.AddrPort) nftables.TableFamily {
	if a.Addr().Unmap().Is4() {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

func refusedName(frontend, backend netip.AddrPort) string {
	return "refused_" + name(frontend) + "_by_" + name(backend)
}

// againQuota bounds the attempts of clients that b has refused; "" if they are
// told.
func (s watchedService) againQuota(b netip.AddrPort) string {
	another := slices.ContainsFunc(serving(s.Service), func(o balancer.Backend) bool { return o.Addr != b })
	switch {
	case another && s.again == AgainByNAT:
		return "again_" + refusedName(s.Frontend, b)
	case s.late():
		return "again_" + name(s.Frontend)
	}
	return ""
}

// late says that refusals are changed when they look as the client sees them.
func (s watchedService) late() bool {
	return s.again == AgainByIPVS && len(serving(s.Service)) > 0 && len(allowed(s.Service)) > 1
}

// refusals is the table for the services of one family, a pure function.
//
// A server's host refuses a connection by a segment that has RST and ACK set and
// the sequence number zero (RFC 9293 section 3.10.7.1). Nothing else looks so.
// Whether it answers a client of ours is what conntrack knows.
func refusals(f ipFamily, services []watchedService) table {
	t := table{family: nftables.TableFamily(f.proto), name: refusalTable}
	services = slices.SortedFunc(slices.Values(services), func(a, b watchedService) int { return a.Frontend.Compare(b.Frontend) })
	// A load balancer that moves is served by two planes for a moment.
	services = slices.CompactFunc(services, func(a, b watchedService) bool { return a.Frontend == b.Frontend })
	refusal := chain{name: "refusal"}
	late := set{name: "late", key: f.addrPortType(), data: nftables.TypeVerdict}
	for _, s := range services {
		if !f.has(s.Frontend.Addr()) {
			continue
		}
		var backends []netip.AddrPort
		for _, b := range allowed(s.Service) {
			if f.has(b.Addr()) {
				backends = append(backends, b)
			}
		}
		if len(backends) == 0 {
			continue
		}
		slices.SortFunc(backends, netip.AddrPort.Compare)
		backends = slices.Compact(backends)
		by := "by_" + name(s.Frontend)
		servers := set{name: by, key: f.addrPortType(), data: nftables.TypeVerdict}
		for _, b := range backends {
			n := refusedName(s.Frontend, b)
			servers.elements = append(servers.elements, nftables.SetElement{
				Key: addrPortKey(b), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: n},
			})
			t.quotas = append(t.quotas, quota{name: n, bytes: 1}) // less than any packet has
			c := chain{name: n, rules: []rule{{
				why: s.LoadBalancer + ": the first one is told", exprs: []expr.Any{useUp(n)},
			}}}
			if q := s.againQuota(b); q != "" && !s.late() {
				t.quotas = append(t.quotas, f.refusalsOf(q))
				c.rules = append(c.rules, rule{
					why: s.LoadBalancer + ": the client tries again, and meets another", exprs: concat([]expr.Any{useUp(q)}, tryAgain()),
				})
			}
			t.chains = append(t.chains, c)
		}
		t.sets = append(t.sets, servers)
		t.chains = append(t.chains, chain{name: by, rules: []rule{{
			why:   s.LoadBalancer,
			exprs: concat(f.client(), []expr.Any{inMap(by, regVerdict)}),
		}}})
		if s.late() {
			q := s.againQuota(netip.AddrPort{})
			t.quotas = append(t.quotas, f.refusalsOf(q))
			retry := "retry_" + name(s.Frontend)
			t.chains = append(t.chains, chain{name: retry, rules: []rule{{
				why: s.LoadBalancer + ": the client tries again, and meets another",
				exprs: concat([]expr.Any{
					// What this node itself refuses has been nowhere else.
					&expr.Ct{Key: expr.CtKeySRC, Direction: ctReply, Register: reg1},
					&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: s.Frontend.Addr().Unmap().AsSlice()},
					useUp(q),
				}, tryAgain()),
			}}})
			late.elements = append(late.elements, nftables.SetElement{
				Key: addrPortKey(s.Frontend), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: retry},
			})
		}
		refusal.rules = append(refusal.rules, rule{
			why: "clients of " + s.Frontend.String(),
			exprs: concat(f.originallyTo(), []expr.Any{
				equal(reg1, s.Frontend.Addr().Unmap().AsSlice()...),
				equal(f.portReg, binary.BigEndian.AppendUint16(nil, s.Frontend.Port())...),
			}, gotoChain(by)),
		})
	}
	if len(refusal.rules) == 0 {
		return t
	}
	look := []rule{{why: "a server refuses", exprs: concat(tcpRefusal(), gotoChain(refusal.name))}}
	// After conntrack, whose knowledge is needed, and before NAT and IPVS make
	// the frontend of the backend's address. Backends on this node answer by
	// the output hook.
	t.chains = append(t.chains, refusal,
		chain{name: "prerouting", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_PRE_ROUTING, priority: manglePriority}, rules: look},
		chain{name: "output", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_OUT, priority: manglePriority}, rules: look},
	)
	if len(late.elements) == 0 {
		return t
	}
	t.sets = append(t.sets, late)
	changed := []rule{{why: "a client is refused", exprs: concat(tcpRefusal(), f.client(), []expr.Any{inMap(late.name, regVerdict)})}}
	t.chains = append(t.chains,
		chain{name: "input", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_LOCAL_IN, priority: latePriority}, rules: changed},
		chain{name: "postrouting", hook: &hook{kind: nftables.ChainTypeFilter, num: unix.NF_INET_POST_ROUTING, priority: latePriority}, rules: changed},
	)
	return t
}

// refusalsOf is a quota of againMost refusals.
func (f ipFamily) refusalsOf(name string) quota {
	// The destination address is the end of the IP header.
	return quota{name: name, bytes: againMost * uint64(f.daddr+f.addrLen+tcpHeaderLen)}
}

func useUp(name string) expr.Any { return &expr.Objref{Type: unix.NFT_OBJECT_QUOTA, Name: name} }

const tcpHeaderLen = 20 // RFC 9293 section 3.1, without options

// tcpRefusal matches the answer to a SYN that nobody listens for: `tcp flags ==
// rst | ack tcp sequence 0`. The flags come before the question whether it is TCP
// at all: nearly every packet differs in them, and so is done with at once.
func tcpRefusal() []expr.Any {
	const rst, ack = 0x04, 0x10 // RFC 9293 section 3.1
	return concat([]expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		equal(reg1, rst|ack),
	}, tcp(), []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 4, Len: 4},
		equal(reg1, 0, 0, 0, 0),
	})
}

// tryAgain makes of a refusal an acknowledgement of what the client never
// sent. It stays in SYN-SENT then (RFC 9293 section 3.10.7.3), and Linux since
// 5.6 sends its SYN again within two ticks of its clock, the first time that this
// happens to a connection; others after their retransmission timeout. The
// numbers are those of poke.
func tryAgain() []expr.Any {
	const ack, checksum = 0x10, 16 // RFC 9293 section 3.1
	write := func(offset, length uint32) *expr.Payload {
		return &expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		}
	}
	return []expr.Any{
		// The flags, with the length of the header before them: checksums are
		// of words of two bytes.
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 2},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 2, Mask: []byte{0xf0, 0}, Xor: []byte{0, ack}},
		write(12, 2),
		&expr.Immediate{Register: reg1, Data: make([]byte, 4)},
		write(8, 4),
	}
}
