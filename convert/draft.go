package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A draft is what the files say, before it is known what of it belongs
// together: who the peers are may stand in another file than the servers.
type draft struct {
	vips     []vip
	iface    string
	peers    []peer
	own      []netip.Addr // addresses of the box itself
	group    bool         // somebody elects a holder
	services []*service
	tracks   []*track
	hooks    []hook
	admin    admin
	single   bool
	// peersAsBackends is kube-vip's addPeersAsBackends.
	peersAsBackends bool

	notes []*note
	noted map[string]bool
	// lines counts the statements read, left those that were not carried over.
	lines int
	left  map[place]bool
}

// A note is one statement that was not carried over, or not as it was.
type note struct {
	place
	words string
	text  string
	// moot says that nobody has to do anything.
	moot bool
	// owner is the load balancer that it belongs to; nil is the whole.
	owner   *service
	written bool
}

type vip struct {
	place
	addr netip.Addr
}

type peer struct {
	place
	id   string
	addr netip.Addr
	port uint16
}

// A span is a duration that was said, if it was.
type span struct {
	d    time.Duration
	said bool
}

// A count is a number that was said, if it was.
type count struct {
	n    int
	said bool
}

// A bind is where clients connect to; the zero address is every one, or with
// virtual every virtual one.
type bind struct {
	statement
	virtual bool
	addr    netip.Addr
	port    uint16
}

// A service is a load balancer in the making.
type service struct {
	statement
	name  string
	binds []bind
	// refused says why it cannot be carried over at all.
	refused                               string
	scheduler, plane                      string
	persistence                           span
	maxconn, retries, maxFails            count
	connect, client, server, queue        span
	requireTLS, failTimeout               span
	queueAt                               statement // where queue was said
	acceptProxy                           bool
	acceptProxyFrom, allow, deny          []netip.Prefix
	sendProxy                             string
	onMarkedDown, onMarkedUp, whenAllDown string
	check                                 check
	servers                               []server
	peersAsBackends                       bool
	backendPort                           uint16
	// deniesRest says that allow is all there is.
	deniesRest bool
	// everywhere listens on every address of the node, lvs at the one that the
	// kernel had.
	everywhere, lvs bool
	// lines are its statements, joined the services whose became part of it.
	lines  []statement
	joined []*service
}

type server struct {
	statement
	name                      string
	addr                      netip.Addr
	port                      uint16 // 0: the one that the client connected to
	weight, maxconn, maxqueue count
	slowstart                 span
	backup                    bool
	peer                      bool // added by addPeersAsBackends
}

type check struct {
	kind                                 string
	inter, fastinter, downinter, timeout span
	rise, fall                           count
	port                                 uint16
	method, path, host                   string
	headers                              [][2]string
	status                               []string
	contains, matches                    string
	verify                               string // "", "true", "false"
	caFile, serverName                   string
	certFile, keyFile                    string
}

// An admin is where the state is shown.
type admin struct {
	listen      []netip.AddrPort
	path        string
	hideVersion bool
	off         bool
}

type track struct {
	statement
	name           string
	exec           []string
	inter, timeout span
	rise, fall     count
	weight         count
	used           bool
}

type hook struct {
	place
	on   string
	exec []string
}

// note writes down that st was not carried over, and what to do about it.
func (d *draft) note(owner *service, st statement, format string, args ...any) {
	d.remark(&note{place: st.place, words: st.text(), text: fmt.Sprintf(format, args...), owner: owner})
}

// moot writes down that st has no meaning here, and that nobody needs it.
func (d *draft) moot(owner *service, st statement, format string, args ...any) {
	d.remark(&note{place: st.place, words: st.text(), text: fmt.Sprintf(format, args...), owner: owner, moot: true})
}

// advise says something about st, which was carried over.
func (d *draft) advise(owner *service, st statement, format string, args ...any) {
	left := d.left[st.place]
	d.note(owner, st, format, args...)
	if !left {
		delete(d.left, st.place)
	}
}

func (d *draft) remark(n *note) {
	n.words = secretless(n.words)
	key := n.place.String() + "\x00" + n.words + "\x00" + n.text
	if d.noted[key] {
		return // defaults are read once for each section that has them
	}
	d.noted[key] = true
	d.left[n.place] = true
	d.notes = append(d.notes, n)
}

// leave notes st with everything in it: the first line says why.
func (d *draft) leave(owner *service, st statement, moot bool, format string, args ...any) {
	say := d.note
	if moot {
		say = d.moot
	}
	say(owner, statement{place: st.place, words: st.words}, format, args...)
	d.within(owner, st.body, st.place, moot)
}

// within notes every statement of list as part of what stands at head.
func (d *draft) within(owner *service, list []statement, head place, moot bool) {
	for _, st := range list {
		d.remark(&note{place: st.place, words: st.text(), text: fmt.Sprintf("part of line %d", head.line), owner: owner, moot: moot})
		d.within(owner, st.body, head, moot)
	}
}

func (d *draft) tally(list []statement) {
	for _, st := range list {
		d.lines++
		d.tally(st.body)
	}
}

func (d *draft) hasVIP(a netip.Addr) bool {
	return slices.ContainsFunc(d.vips, func(v vip) bool { return v.addr == a })
}
