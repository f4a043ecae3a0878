package keepalived

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

const (
	// What keepalived means by persistence_timeout without a time, and where nothing is said of scheduler and checks.
	defaultPersistence = 6 * time.Minute
	defaultScheduler   = "wlc"
	defaultDelay       = time.Minute
	defaultTimeout     = 5 * time.Second
	defaultRetry       = 1
	defaultTCPAgain    = time.Second
	defaultHTTPAgain   = 3 * time.Second
	// maxLVSWeight is the largest weight of IPVS that matters here; larger ones are scaled down.
	maxLVSWeight = 1 << 20
)

// schedulers are those of IPVS that we know by the same name.
var schedulers = []string{
	"rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq", "dh", "lblc", "lblcr", "ovf", "fo", "twos",
}

// A virtualServer is a virtual_server block as it is read.
type virtualServer struct {
	*draft.LB
	user string // of scripts that name none
	// usual is what the block says of all checks.
	usual draft.HealthCheck
	// quorums are the lines that say with how many servers the sorry_server takes over.
	quorums []draft.Line
	// inhibits are the lines by which a server that is down stays, with a weight of 0.
	inhibits []draft.Line
}

// readVirtualServer reads a virtual_server block: an address and port, and the servers behind it.
func readVirtualServer(d *draft.Draft, st syntax.Statement, groups map[string]syntax.Statement, user string) {
	v := &virtualServer{LB: &draft.LB{Statement: st.Head(), Lines: st.Body, LVS: true}, user: user}
	switch st.Arg(1) {
	case "fwmark":
		v.Refused = isMarked
	case "group":
		group, ok := groups[st.Arg(2)]
		if !ok {
			v.Refused = "its virtual_server_group is not in these files"
		}
		for _, l := range d.Lines(v.LB, group.Body) {
			v.address(l, l.Arg(0), l.Arg(1))
		}
	default:
		v.address(draft.Line{Draft: d, Owner: v.LB, Statement: st}, st.Arg(1), st.Arg(2))
	}
	if len(v.Binds) == 0 && v.Refused == "" {
		v.Refused = "it has no address and port"
	}
	isServer := func(l draft.Line) bool { return l.Words[0] == "real_server" || l.Words[0] == "sorry_server" }
	all := d.Lines(v.LB, st.Body)
	for _, l := range all {
		if !isServer(l) {
			v.line(l)
		}
	}
	isProtocol := func(l draft.Line) bool { return l.Words[0] == "protocol" }
	if !slices.ContainsFunc(all, isProtocol) {
		d.Advise(v.LB, v.Statement, "has no protocol, which keepalived 2 takes for UDP; is carried as TCP")
	}
	v.usual = v.Check
	for _, l := range all {
		if isServer(l) {
			v.line(l)
		}
	}
	v.quorum()
	if len(v.inhibits) > 0 && v.Persistence.Set { // IPVS asks no weight of whom a client comes back to
		v.inhibits[0].Advise("keeps open connections; clients who come back by persistence go to another server while theirs " +
			"is down, and not to that one as in keepalived")
	}
	if v.Scheduler == "" {
		v.Scheduler = defaultScheduler
	}
	if !v.joinChecks() {
		v.Check = draft.HealthCheck{Type: "none"}
		if v.usual.Inter.Set {
			d.Advise(v.LB, v.Statement, "no real server has a check, so none is made; remove check below to have one")
		}
	}
	d.LoadBalancers = append(d.LoadBalancers, v.LB)
}

// address reads an address and port to listen on.
func (v *virtualServer) address(l draft.Line, address, port string) {
	a, ok := draft.ReadAddr(address)
	low, _, isRange := strings.Cut(address, "-")
	_, isAddr := draft.ReadAddr(low)
	switch {
	case address == "fwmark":
		l.Note(isMarked)
		return
	case isRange && isAddr:
		l.Note("is a range of addresses; write each of them")
		return
	case !ok:
		l.Note("%s", draft.WrongAddr(address))
		return
	}
	n, ok := draft.ReadPort(port)
	if !ok {
		why := "has no port from 1 to 65535; write one load balancer for each port"
		if draft.Placeholder(port) {
			why = draft.Unfilled
		}
		l.Note("%s", why)
		return
	}
	v.Binds = append(v.Binds, draft.Bind{Statement: l.Statement, Addr: a, Port: n})
}

const isMarked = "it serves marked packets; write one load balancer for each port"

// A reader reads one line.
type reader func(v *virtualServer, l draft.Line)

// lines are the keywords of a virtual_server with something to read.
var lines = map[string]reader{
	"delay_loop": func(v *virtualServer, l draft.Line) {
		l.Span(units, l.Arg(1), draft.MinInter, draft.MaxInter, &v.Check.Inter)
	},
	"lb_algo":    (*virtualServer).scheduler,
	"lvs_sched":  (*virtualServer).scheduler,
	"lb_kind":    (*virtualServer).method,
	"lvs_method": (*virtualServer).method,
	"protocol": func(v *virtualServer, l draft.Line) {
		if l.Arg(1) != "TCP" {
			v.Refused = "it is " + syntax.Printable(l.Arg(1)) + ", and TCP is carried"
		}
	},
	"persistence_timeout": func(v *virtualServer, l draft.Line) {
		switch {
		case len(l.Words) == 1:
			v.Persistence = draft.Span{Value: defaultPersistence, Set: true}
		case l.Arg(1) != "0":
			l.Span(units, l.Arg(1), draft.MinPersistence, draft.MaxSticky, &v.Persistence)
		}
	},
	"real_server": (*virtualServer).realServer,
	"sorry_server": func(v *virtualServer, l draft.Line) {
		if srv, ok := v.serverAddress(l); ok {
			srv.Backup, srv.Check = true, &draft.HealthCheck{Type: "none"}
			v.Servers = append(v.Servers, srv)
		}
	},
	"quorum":               func(v *virtualServer, l draft.Line) { v.quorums = append(v.quorums, l) },
	"hysteresis":           func(v *virtualServer, l draft.Line) { v.quorums = append(v.quorums, l) },
	"inhibit_on_failure":   (*virtualServer).keepDown,
	"sorry_server_inhibit": (*virtualServer).keepDown,
	"retry":                (*virtualServer).usualRetry,
	"delay_before_retry":   (*virtualServer).checkLine,
	"connect_timeout":      (*virtualServer).checkLine,
	"warmup":               (*virtualServer).checkLine,
	"virtualhost":          func(v *virtualServer, l draft.Line) { v.Check.Host = l.Arg(1) },
}

// lineRemarks are the keywords of a virtual_server that are noted and nothing else.
var lineRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "ha_suspend alpha omega flag-1 flag-2 flag-3 sh-port sh-fallback mh-port mh-fallback",
		Text: isMissing},
	draft.Remark{Keywords: "ops", Moot: true, Text: "is for UDP"},
	draft.Remark{Keywords: "quorum_up quorum_down", Text: noEvent},
	draft.Remark{Keywords: "persistence_granularity persistence_engine", Text: "persistence is by the whole address"},
)

const (
	isMissing  = "is not there"
	noSuchPort = "is no port; write a number from 1 to 65535"
)

// line reads one line of the block.
func (v *virtualServer) line(l draft.Line) {
	if name, _ := only(l); name != "" {
		v.Refused = l.Place.String() + " is for some machines only, and one file of ours fits all peers"
	} else if read := lines[l.Words[0]]; read != nil {
		read(v, l)
	} else if strings.HasPrefix(l.Words[0], "include") {
		v.Refused = l.Place.String() + isIncluded
	} else if !l.Remark(lineRemarks, l.Words[0]) {
		l.NoteAll(false, draft.IsUnknown)
	}
}

// quorum says what becomes of quorum and hysteresis, once all servers are read. keepalived adds up the weights of the
// servers that are up (its ipwrapper.c); the two together are what it wants before the sorry_server leaves.
func (v *virtualServer) quorum() {
	sum := 0
	var at draft.Line
	for _, l := range v.quorums {
		var n draft.Number
		if l.Number(l.Arg(1), 0, maxLVSWeight, &n); !n.Set {
			n.Value = maxLVSWeight + 1 // more than any server has
		}
		if n.Value > 0 {
			sum, at = sum+n.Value, l
		}
	}
	isSorry := func(srv draft.ServerEntry) bool { return srv.Backup }
	isTooFew := func(srv draft.ServerEntry) bool {
		weight := 1 // where nothing is said
		if srv.Weight.Set {
			weight = srv.Weight.Value
		}
		return !srv.Backup && weight > 0 && weight < sum
	}
	switch {
	case !slices.ContainsFunc(v.Servers, isSorry):
		for _, l := range v.quorums {
			l.Moot("decides about a sorry_server, and there is none")
		}
	case slices.ContainsFunc(v.Servers, isTooFew):
		v.Refused = cmp.Or(v.Refused, at.Place.String()+" has the sorry_server take over from servers that are left, and here "+
			"a backup serves when no other server can; convert without that line if they may serve alone")
	}
}

func (v *virtualServer) scheduler(l draft.Line) {
	if !slices.Contains(schedulers, l.Arg(1)) {
		l.Note("write scheduler: %s", strings.Join(schedulers, ", "))
		return
	}
	v.Scheduler = l.Arg(1)
}

func (v *virtualServer) method(l draft.Line) {
	switch l.Arg(1) {
	case "NAT":
		v.Plane = "ipvs"
	case "DR":
		l.Advise("became the choice of the appliance, which sends packets on unchanged, as DR does, only where every " +
			"server is a peer or worker on the same port; elsewhere servers see a node's address in place of the client's")
	default:
		l.Note("there are no tunnels; the data plane is chosen by what kernel and network can do")
	}
}

func (v *virtualServer) keepDown(l draft.Line) {
	v.OnMarkedDown, v.inhibits = "keep", append(v.inhibits, l)
}

// serverAddress reads the address and port of a server.
func (v *virtualServer) serverAddress(l draft.Line) (draft.ServerEntry, bool) {
	srv := draft.ServerEntry{Statement: l.Head()}
	var ok bool
	if srv.Addr, ok = draft.ReadAddr(l.Arg(1)); !ok {
		if srv.SetHost(l.Arg(1)) {
			l.Note("is a name, and keepalived passes over such servers; write it as a backend if it is meant to serve")
			return srv, false
		}
		l.Note("%s", draft.WrongAddr(l.Arg(1)))
		v.LostFirst = v.LostFirst || l.Words[0] == "real_server"
		return srv, false
	}
	if l.Arg(2) == "" || l.Arg(2) == "0" {
		return srv, true // the port of the virtual server
	}
	if srv.Port, ok = draft.ReadPort(l.Arg(2)); !ok {
		l.Note("%s "+noSuchPort, l.Arg(2))
	}
	return srv, ok
}

// joinChecks makes the check of the first server that has one that of all; servers with another keep their own. It
// reports whether there is one.
func (v *virtualServer) joinChecks() bool {
	isChecked := func(srv draft.ServerEntry) bool { return srv.Check != nil && srv.Check.Type != "none" }
	at := slices.IndexFunc(v.Servers, isChecked)
	if at >= 0 {
		v.Check = *v.Servers[at].Check
		v.Check.Addr = netip.Addr{} // that is of one server
	}
	for i := range v.Servers {
		if own := v.Servers[i].Check; own != nil && (at < 0 || reflect.DeepEqual(*own, v.Check)) {
			v.Servers[i].Check = nil
		}
	}
	return at >= 0
}

// realServer reads a server with its check.
func (v *virtualServer) realServer(l draft.Line) {
	srv, ok := v.serverAddress(l)
	if !ok {
		l.NoteWithin(v.LB, l.Body, l.Place, false)
		return
	}
	before, usual := v.Check, v.usual
	defer func() { v.Check, v.usual = before, usual }()
	srv.Check = &draft.HealthCheck{Type: "none"}
	for _, line := range l.Lines(v.LB, l.Body) {
		switch w := line.Words[0]; w {
		case "delay_before_retry", "connect_timeout", "delay_loop", "virtualhost", "retry":
			v.Check = v.usual
			if w == "retry" {
				v.usualRetry(line)
			} else {
				v.checkLine(line)
			}
			v.usual = v.Check
		}
	}
	checks := 0
	all := l.Lines(v.LB, l.Body)
	connects := slices.ContainsFunc(all, connectsToo)
	for _, line := range all {
		if isPlain(line) && connects {
			line.NoteAll(true, "the other check of the server opens a connection as well")
			continue
		}
		switch w := line.Words[0]; w {
		case "weight":
			line.Number(line.Arg(1), 0, maxLVSWeight, &srv.Weight)
		case "uthreshold":
			line.Number(line.Arg(1), 0, draft.MaxConns, &srv.MaxConn)
		case "inhibit_on_failure":
			v.keepDown(line)
		case "TCP_CHECK", "HTTP_GET", "SSL_GET", "SMTP_CHECK":
			if checks++; checks > 1 {
				v.lose(line, secondCheck)
				continue
			}
			v.readCheck(line)
			check := v.Check
			srv.Check = &check
		case "MISC_CHECK":
			if checks++; checks > 1 {
				v.lose(line, secondCheck)
				continue
			}
			if srv.Check = v.program(line); srv.Check == nil {
				srv.Check = v.plainCheck()
			}
		case "notify_up":
			v.notify(line, "backend-up")
		case "notify_down":
			v.notify(line, "backend-down")
		case "retry", "delay_before_retry", "connect_timeout", "delay_loop", "virtualhost": // read before
		default:
			if name, _ := only(line); name != "" {
				v.Refused = line.Place.String() + " is for some machines only, and one file of ours fits all peers"
				continue
			}
			if strings.HasSuffix(w, "_CHECK") {
				if checks == 0 {
					srv.Check = v.plainCheck()
				}
			}
			if strings.HasPrefix(w, "include") {
				v.Refused = line.Place.String() + isIncluded
				continue
			}
			if !line.Remark(serverRemarks, w) {
				line.NoteAll(false, isMissing)
			}
		}
	}
	v.Servers = append(v.Servers, srv)
}

// plainCheck is made in the place of one that cannot be.
func (v *virtualServer) plainCheck() *draft.HealthCheck {
	c := v.usualCheck("tcp")
	limitTimeout(&c)
	return &c
}

const isIncluded = " includes a file that is not among these, which may say who is served or how it is checked; " +
	"convert that file too"

const secondCheck = "is a second check of one server, and one is made here; a program can make both: " +
	"check: {type: program, exec: [...]}"

// elsewhere reports whether a check says where it connects to.
func elsewhere(l draft.Line) bool {
	return slices.ContainsFunc(l.Body, func(st syntax.Statement) bool {
		w := st.Words[0]
		return w == "connect_port" || w == "connect_ip" || w == "host"
	})
}

// isPlain reports whether a check does no more than to open a connection with the server, and connectsToo whether
// another kind of check does that as well.
func isPlain(l draft.Line) bool { return l.Words[0] == "TCP_CHECK" && !elsewhere(l) }

func connectsToo(l draft.Line) bool {
	return slices.Contains([]string{"HTTP_GET", "SSL_GET", "SMTP_CHECK"}, l.Words[0]) && !elsewhere(l)
}

// serverRemarks are the keywords of a real_server that are noted and nothing else.
var serverRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "DNS_CHECK BFD_CHECK UDP_CHECK PING_CHECK FILE_CHECK",
		Text: isOtherCheck},
)

// isOtherCheck is what becomes of a check that cannot be made.
const isOtherCheck = "is not made here; what stands in check below is made instead, which may say less: " +
	"write check: {type: tcp, tls, http or https}"

// notify reads a script that follows a change of a server's state.
func (v *virtualServer) notify(l draft.Line, on string) {
	exec, why := command(l, l.Words[1:min(2, len(l.Words))])
	if why != "" {
		l.Note("%s", why)
		return
	}
	for _, h := range l.Hooks {
		if h.On == on && slices.Equal(h.Exec, exec) {
			return // each server names the same script; one hook is for all
		}
	}
	user := v.user
	if l.Arg(2) != "" {
		user = readUser(l, l.Arg(2))
	}
	if user == "" {
		l.Advise(noUser)
	}
	l.Hooks = append(l.Hooks, draft.HookDraft{Place: l.Place, On: on, Exec: exec, User: user})
	l.Advise("became a hook for every backend; it is told which one")
}
