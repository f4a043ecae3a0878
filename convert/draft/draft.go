package draft

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/convert/syntax"
)

// A Draft is what the files say, before it is known what belongs together: the peers may be in another file than the
// servers.
type Draft struct {
	VIPs      []VIPEntry
	Interface string // of the virtual addresses that name none
	Peers     []PeerDraft
	Own       []netip.Addr // addresses of the machine itself
	// OnLo are addresses that the machine has for itself, without answering for them.
	OnLo []netip.Addr
	// AllNamed means that the machine itself is among Peers, though not which one it is.
	AllNamed bool
	// PeerHint says how Peers were found, if somebody has to look at it.
	PeerHint      []string
	Group         bool // somebody elects a holder
	LoadBalancers []*LB
	Tracks        []*TrackDraft
	Hooks         []HookDraft
	Admin         AdminEntry
	Single        bool
	// Alone means that the files have virtual addresses and balance nothing: the machines' own programs serve there, and
	// go on to.
	Alone bool
	// GoesOn means that haproxy or nginx of these machines goes on to serve something, so that it is still looked after.
	GoesOn bool
	// Usual means that a file without load balancers has one for kube-apiservers, as ours.
	Usual bool
	// PeersAsBackends is kube-vip's addPeersAsBackends.
	PeersAsBackends bool
	// LogTo is where connections are logged, LogFacility the facility there; empty if no file says.
	LogTo, LogFacility string
	// LogEvery is that of so many connections one is logged.
	LogEvery Number
	// Nameservers are asked for the names of servers, instead of the host's own; MaxTTL is how long an answer is good.
	Nameservers []netip.AddrPort
	MaxTTL      Span

	// Notes are what was not carried over, or not as it was.
	Notes []*Note
	noted map[string]bool
	left  map[syntax.Place]bool // where statements were not carried over
	// Statements counts the statements that were read.
	Statements int
}

// New returns an empty draft.
func New() *Draft { return &Draft{noted: map[string]bool{}, left: map[syntax.Place]bool{}} }

// A VIPEntry is a virtual address in a file.
type VIPEntry struct {
	syntax.Place
	Addr      netip.Addr
	Interface string // empty if the file does not say
}

// A PeerDraft is a member of the group in a file.
type PeerDraft struct {
	syntax.Place
	ID   string
	Addr netip.Addr
	// Further are its host's other addresses.
	Further []netip.Addr
	Port    uint16
}

// Addrs are all addresses of the peer's host.
func (p PeerDraft) Addrs() []netip.Addr { return append([]netip.Addr{p.Addr}, p.Further...) }

// A Span is a duration; Set reports whether a file gives it.
type Span struct {
	Value time.Duration
	Set   bool
}

// A Number is an integer; Set reports whether a file gives it.
type Number struct {
	Value int
	Set   bool
}

// A Bind is where clients connect to. The zero address is every address, or with Virtual every virtual one, of both
// families unless Only4 or Only6 says which.
type Bind struct {
	syntax.Statement
	Virtual      bool
	Only4, Only6 bool
	Addr         netip.Addr
	Port         uint16
	// ByProxy means that clients there begin with a PROXY header.
	ByProxy bool
}

// Has reports whether a connection to a, one of the virtual addresses, comes to the bind.
func (b Bind) Has(a netip.Addr) bool {
	if b.Addr.IsValid() {
		return b.Addr == a
	}
	return !(b.Only4 && a.Is6() || b.Only6 && a.Is4())
}

// An LB is a load balancer in the making.
type LB struct {
	syntax.Statement
	Name  string
	Binds []Bind
	// Refused says why the load balancer cannot be carried over at all.
	Refused                        string
	Scheduler, Plane               string
	Persistence                    Span
	MaxConn, Retries, MaxFails     Number
	Connect, Client, Server, Queue Span
	RequireTLS, FailTimeout        Span
	QueueAt                        syntax.Statement // the one that gives Queue
	AcceptProxy                    bool
	AcceptProxyFrom, Allow, Deny   []netip.Prefix
	SendProxy                      string
	Log                            string // text, or empty
	LogEvery                       Number
	OnMarkedDown, OnMarkedUp       string
	Check                          HealthCheck
	Servers                        []ServerEntry
	PeersAsBackends                bool
	BackendPort                    uint16
	// OneBackup means that of the backups only the first that lives serves.
	OneBackup bool
	// LostFirst means that a server which is no backup could not be read.
	LostFirst bool
	// Access are nginx's rules of who may connect, in their order.
	Access []AccessRule
	// Stays means that what is refused is no load balancer of ours in any case, so that the program goes on to serve it.
	Stays bool
	// Everywhere means that it listens on every address of the node, LVS that the kernel balanced at its address.
	Everywhere, LVS bool
	// Lines are its statements, Joined the parts of files that became part of it.
	Lines  []syntax.Statement
	Joined []*LB
}

// RefuseMixed refuses lb if clients begin with a PROXY header on some of its addresses alone: on the others, everybody
// could name the address of another by one.
func (lb *LB) RefuseMixed() {
	isBy := func(b Bind) bool { return b.ByProxy }
	isNot := func(b Bind) bool { return !b.ByProxy }
	if i := slices.IndexFunc(lb.Binds, isBy); i >= 0 && slices.ContainsFunc(lb.Binds, isNot) && lb.Refused == "" {
		lb.Refused = lb.Binds[i].Place.String() + " wants a PROXY header on some of its addresses alone; " +
			"write a section of its own for each of the two"
	}
}

// A ServerEntry is a server behind a load balancer.
type ServerEntry struct {
	syntax.Statement
	Name                       string
	Addr                       netip.Addr
	Host                       string // instead of Addr: a name, of which MaxAddresses are servers; 0: all
	MaxAddresses               int
	Port                       uint16 // 0 means the port that the client connected to
	Weight, MaxConn, MaxQueued Number
	SlowStart                  Span
	Backup, Disabled           bool
	// MaxFails and FailTimeout are its own, where they are not those of the load balancer.
	MaxFails    Number
	FailTimeout Span
	Peer        bool // added by addPeersAsBackends
	// SendProxy is the version of its PROXY header if that is another than the load balancer's, or off.
	SendProxy string
	// OnMarkedDown is what happens to its connections when it is marked down, if that is not as the load balancer says.
	OnMarkedDown string
	// Check is how it is checked; nil is as the load balancer says.
	Check *HealthCheck
}

// A HealthCheck is how the servers of a load balancer are checked.
type HealthCheck struct {
	Type                                 string
	Inter, FastInter, DownInter, Timeout Span
	Rise, Fall                           Number
	Port                                 uint16
	Addr                                 netip.Addr // of a server's own check: what is checked in its place
	SendProxy                            string
	Method, Path, Host                   string
	Headers                              [][2]string
	Status                               []string
	Contains, Matches                    string
	Absent, Mismatches                   string
	Verify                               string // "", "true", "false"
	CAFile, ServerName                   string
	CertFile, KeyFile                    string
	Exec                                 []string // a program's path and arguments, which User runs
	// Steps, User and Helo are for the types that talk, OverTLS that they do so over TLS.
	Steps      []SpokenStep
	User, Helo string
	OverTLS    bool
}

// Talks reports whether a check holds a conversation other than HTTP.
func (c HealthCheck) Talks() bool {
	return slices.Contains([]string{"exchange", "redis", "smtp", "mysql", "pgsql", "ldap"}, c.Type)
}

// Waits reports whether a check waits for an answer.
func (c HealthCheck) Waits() bool { return c.Type == "http" || c.Type == "https" || c.Talks() }

// A SpokenStep is one step of a conversation: Key is send, expect, matches, absent or mismatches, and
// Bytes what.
type SpokenStep struct{ Key, Bytes string }

// An AdminEntry is where the state is shown.
type AdminEntry struct {
	Listen      []netip.AddrPort
	Path        string
	HideVersion bool
	Off         bool
}

// A TrackDraft is a program that is run to see whether a node is fit.
type TrackDraft struct {
	syntax.Statement
	Name           string
	Exec           []string
	User           string // empty if the file does not say
	Inter, Timeout Span
	Rise, Fall     Number
	Weight         Number
	Used           bool
	Reverse        bool // it fails when its program succeeds
}

// A HookDraft is a program that is told of an event.
type HookDraft struct {
	syntax.Place
	On   string
	Exec []string
	User string // empty if the file does not say
}

// SetHost reads the address or the name of a server, and reports whether it is one.
func (s *ServerEntry) SetHost(word string) (ok bool) {
	if s.Addr, ok = ReadAddr(word); !ok && isHostName(word) {
		s.Host, ok = strings.ToLower(strings.TrimSuffix(word, ".")), true
	}
	return ok
}

// Where is the server's address or name.
func (s ServerEntry) Where() string {
	if s.Host != "" {
		return s.Host
	}
	return s.Addr.String()
}

// dnsPort is that of DNS servers (RFC 1035, section 4.2).
const dnsPort = 53

// AddNameserver reads a DNS server, address or address:port.
func (l Line) AddNameserver(word string) {
	at, err := netip.ParseAddrPort(word)
	if err != nil {
		a, ok := ReadAddr(word)
		if !ok {
			l.Note("%s is no address of a DNS server", syntax.Printable(word))
			return
		}
		at = netip.AddrPortFrom(a, dnsPort)
	}
	if !slices.Contains(l.Nameservers, at) {
		l.Nameservers = append(l.Nameservers, at)
	}
}

// ReadTTL reads how long an answer of the DNS is good.
func (l Line) ReadTTL(u Units, word string) { l.Span(u, word, time.Second, maxTTL, &l.MaxTTL) }

// Count counts the statements of list and those within them.
func (d *Draft) Count(list []syntax.Statement) {
	for _, st := range list {
		d.Statements++
		d.Count(st.Body)
	}
}

// AddVIP reads a virtual address: address[/length] [dev x] [label y] ... on is its interface if it names none.
func (d *Draft) AddVIP(st syntax.Statement, on string) {
	word, _, _ := strings.Cut(st.Words[0], "/")
	a, ok := ReadAddr(word)
	switch {
	case !ok:
		d.Note(nil, st, "%s", WrongAddr(word))
		return
	case a.IsLoopback():
		d.Note(nil, st, "is a loopback address, which no other machine can reach")
		return
	case slices.ContainsFunc(d.VIPs, func(v VIPEntry) bool { return v.Addr == a }):
		d.Note(nil, st, "is there twice")
		return
	}
	for i, w := range st.Words[1:] {
		if w == "dev" {
			on = d.ReadInterface(syntax.Statement{Place: st.Place, Words: []string{"dev", st.Arg(i + 2)}})
		}
	}
	if on == "lo" {
		d.OnLo = append(d.OnLo, a)
		d.Note(nil, st, "is put on lo, where nobody answers for it, and routers hear of it by another program or have "+
			"a route; write it in vips with announce: {by: routes} or {by: bgp}, which replaces that program")
		return
	}
	d.VIPs = append(d.VIPs, VIPEntry{st.Place, a, on})
}

// ReadInterface reads the name of an interface, the second word of st; empty if it is none.
func (d *Draft) ReadInterface(st syntax.Statement) string {
	name := st.Arg(1)
	switch {
	case Placeholder(name):
		d.Note(nil, st, "is still to be filled in; "+
			"without it, the interface is the one whose subnet has the virtual address")
	case name == "" || len(name) > 15 || strings.ContainsAny(name, "/ :%") || syntax.Printable(name) != name:
		d.Note(nil, st, "is no interface's name")
	default:
		return name
	}
	return ""
}

// Everybody is all addresses.
func Everybody() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}
