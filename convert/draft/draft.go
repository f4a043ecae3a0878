package draft

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/convert/syntax"
)

// A Draft is what the files say, before it is known what of it belongs
// together: who the peers are may stand in another file than the servers.
type Draft struct {
	VIPs      []VIPEntry
	Interface string
	Peers     []PeerEntry
	Own       []netip.Addr // addresses of the box itself
	Group     bool         // somebody elects a holder
	Services  []*LB
	Tracks    []*TrackEntry
	Hooks     []HookEntry
	Admin     AdminEntry
	Single    bool
	// peersAsBackends is kube-vip's addPeersAsBackends.
	PeersAsBackends bool

	Notes []*Note
	noted map[string]bool
	// lines counts the statements read, left those that were not carried over.
	Statements int
	left       map[syntax.Place]bool
}

type VIPEntry struct {
	syntax.Place
	Addr netip.Addr
}

type PeerEntry struct {
	syntax.Place
	ID   string
	Addr netip.Addr
	Port uint16
}

// A Span is a duration that was said, if it was.
type Span struct {
	Value time.Duration
	Set   bool
}

// A Number is a number that was said, if it was.
type Number struct {
	Value int
	Set   bool
}

// A Bind is where clients connect to; the zero address is every one, or with
// virtual every virtual one.
type Bind struct {
	syntax.Statement
	Virtual bool
	Addr    netip.Addr
	Port    uint16
}

// A LB is a load balancer in the making.
type LB struct {
	syntax.Statement
	Name  string
	Binds []Bind
	// refused says why it cannot be carried over at all.
	Refused                               string
	Scheduler, Plane                      string
	Persistence                           Span
	MaxConn, Retries, MaxFails            Number
	Connect, Client, Server, Queue        Span
	RequireTLS, FailTimeout               Span
	QueueAt                               syntax.Statement // where queue was said
	AcceptProxy                           bool
	AcceptProxyFrom, Allow, Deny          []netip.Prefix
	SendProxy                             string
	OnMarkedDown, OnMarkedUp, WhenAllDown string
	Check                                 HealthCheck
	Servers                               []ServerEntry
	PeersAsBackends                       bool
	BackendPort                           uint16
	// deniesRest says that allow is all there is.
	DeniesRest bool
	// everywhere listens on every address of the node, lvs at the one that the
	// kernel had.
	Everywhere, LVS bool
	// lines are its statements, joined the services whose became part of it.
	Lines  []syntax.Statement
	Joined []*LB
}

type ServerEntry struct {
	syntax.Statement
	Name                       string
	Addr                       netip.Addr
	Port                       uint16 // 0: the one that the client connected to
	Weight, MaxConn, MaxQueued Number
	SlowStart                  Span
	Backup                     bool
	Peer                       bool // added by addPeersAsBackends
}

type HealthCheck struct {
	Type                                 string
	Inter, FastInter, DownInter, Timeout Span
	Rise, Fall                           Number
	Port                                 uint16
	Method, Path, Host                   string
	Headers                              [][2]string
	Status                               []string
	Contains, Matches                    string
	Verify                               string // "", "true", "false"
	CAFile, ServerName                   string
	CertFile, KeyFile                    string
}

// An AdminEntry is where the state is shown.
type AdminEntry struct {
	Listen      []netip.AddrPort
	Path        string
	HideVersion bool
	Off         bool
}

type TrackEntry struct {
	syntax.Statement
	Name           string
	Exec           []string
	Inter, Timeout Span
	Rise, Fall     Number
	Weight         Number
	Used           bool
}

type HookEntry struct {
	syntax.Place
	On   string
	Exec []string
}

func (d *Draft) Tally(list []syntax.Statement) {
	for _, st := range list {
		d.Statements++
		d.Tally(st.Body)
	}
}

func (d *Draft) hasVIP(a netip.Addr) bool {
	return slices.ContainsFunc(d.VIPs, func(v VIPEntry) bool { return v.Addr == a })
}

// Everybody is whom a PROXY header is believed from where nobody says less.
func Everybody() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

func (d *Draft) SetInterface(st syntax.Statement) {
	name := st.Arg(1)
	switch {
	case Placeholder(name):
		d.Note(nil, st, "%s; without it, the interface is the one whose subnet has the virtual address", "is still to be filled in")
	case name == "" || len(name) > 15 || strings.ContainsAny(name, "/ :%") || syntax.Printable(name) != name:
		d.Note(nil, st, "is no interface's name")
	case d.Interface == "":
		d.Interface = name
	case d.Interface != name:
		d.Note(nil, st, "is another interface than %s; remove interface below, and each virtual address finds its own by its subnet", d.Interface)
	}
}

// AddVIP reads address[/length] [dev x] [label y] ...
func (d *Draft) AddVIP(st syntax.Statement) {
	word, _, _ := strings.Cut(st.Words[0], "/")
	a, ok := ReadAddr(word)
	switch {
	case !ok:
		d.Note(nil, st, "%s", WrongAddr(word))
		return
	case a.IsLoopback():
		d.Note(nil, st, "is a loopback address, which no other machine can reach")
		return
	case d.hasVIP(a):
		d.Note(nil, st, "is there twice")
		return
	}
	d.VIPs = append(d.VIPs, VIPEntry{st.Place, a})
	for i, w := range st.Words[1:] {
		switch w {
		case "dev":
			d.SetInterface(syntax.Statement{Place: st.Place, Words: []string{"dev", st.Arg(i + 2)}})
		case "label", "brd", "broadcast", "scope", "nodad", "home", "noprefixroute", "mngtmpaddr", "-nodad":
		}
	}
}

func New() *Draft { return &Draft{noted: map[string]bool{}, left: map[syntax.Place]bool{}} }
