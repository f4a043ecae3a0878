package keepalived

import (
	"maps"
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// Grammar is that of keepalived.conf.
var Grammar = syntax.Grammar{Comments: "#!", Inside: true, Braces: true, Continues: true}

var units = draft.Units{Bare: time.Second, Named: map[string]time.Duration{"s": time.Second}}

// Read adds what the statements of a keepalived.conf say to d.
func Read(d *draft.Draft, list []syntax.Statement) error {
	list = (&expander{values: map[string]string{}}).expand(list)
	groups := map[string]syntax.Statement{}
	var instances []*instance
	together := false // a vrrp_sync_group has all of them
	usual := scriptUser(d, list)
	mayHave := func(st syntax.Statement) bool { // what is included may
		return st.Words[0] == "virtual_server" || strings.HasPrefix(st.Words[0], "include")
	}
	d.Alone = len(d.LoadBalancers) == 0 && count(list, "vrrp_instance") > 0 && !slices.ContainsFunc(list, mayHave)
	for _, st := range list {
		switch st.Words[0] {
		case "vrrp_script":
			readScript(d, st, usual)
		case "vrrp_track_process":
			readProcess(d, st)
		case "virtual_server_group":
			groups[st.Arg(1)] = st
		}
	}
	used := map[string]bool{}
	for _, l := range d.Lines(nil, list) {
		st := l.Statement
		switch w := l.Words[0]; w {
		case "vrrp_script", "vrrp_track_process", "virtual_server_group": // read above
		case "vrrp_instance":
			instances = append(instances, readInstance(d, st, usual))
		case "vrrp_sync_group":
			for _, line := range d.Lines(nil, l.Body) {
				if useTracks(line) {
					continue
				}
				if line.Words[0] != "group" { // all virtual addresses have one holder
					readNotify(line, usual, "GROUP", st.Arg(1))
					continue
				}
				together = together || len(line.Body) == count(list, "vrrp_instance")
			}
		case "virtual_server":
			readVirtualServer(d, st, groups, usual)
			if st.Arg(1) == "group" {
				used[st.Arg(2)] = true
			}
		case "global_defs":
			readGlobal(d, st)
		default:
			switch {
			case l.Remark(remarks, w):
			case strings.HasPrefix(w, "@"):
				l.NoteAll(false, someMachines)
			default:
				l.NoteAll(false, draft.IsUnknown)
			}
		}
	}
	addMachines(d, instances)
	preferences(instances, together)
	for _, t := range d.Tracks {
		if !t.Used {
			d.NoteAll(nil, t.Statement, true, "no "+trackLists[t.Words[0]]+" names it")
		}
	}
	d.Tracks = slices.DeleteFunc(d.Tracks, func(t *draft.TrackDraft) bool { return !t.Used || t.Reverse })
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		if !used[name] {
			d.NoteAll(nil, groups[name], true, "no virtual_server uses it")
		}
	}
	return nil
}

// scriptUser is the user whom global_defs names for all scripts, empty if there is none.
func scriptUser(d *draft.Draft, list []syntax.Statement) (user string) {
	for _, st := range list {
		if st.Words[0] != "global_defs" {
			continue
		}
		for _, l := range d.Lines(nil, st.Body) {
			if l.Words[0] == "script_user" {
				user = readUser(l, l.Arg(1))
			}
		}
	}
	return user
}

// count is how many statements begin with a word.
func count(list []syntax.Statement, word string) (n int) {
	for _, st := range list {
		if st.Words[0] == word {
			n++
		}
	}
	return n
}

// remarks are the keywords at the top that are noted and nothing else.
var remarks = draft.NewRemarks(
	draft.Remark{Keywords: "include includer includem includew includeb includea",
		Text: "nothing is included; convert those files too"},
	draft.Remark{Keywords: "vrrp_track_file track_file bfd_instance static_ipaddress static_routes static_rules",
		Text: isNoTrack},
)

const isNoTrack = "is not there; a track that runs a program can look at anything: tracks: [{name: x, exec: [/path]}]"

func readGlobal(d *draft.Draft, st syntax.Statement) {
	for _, l := range d.Lines(nil, st.Body) {
		if l.Words[0] != "script_user" && !l.Remark(globalRemarks, l.Words[0]) {
			l.NoteAll(true, "has no meaning here")
		}
	}
}

// globalRemarks are the keywords of global_defs that mean something; all others have no meaning here.
var globalRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "notification_email smtp_*", Text: "no mail is sent; " +
		"a hook can run a program: hooks: [{on: [holder, released], exec: [/path]}]"},
	draft.Remark{Keywords: "enable_script_security", Moot: true, Text: draft.IsAlways},
	draft.Remark{Keywords: "vrrp_garp* vrrp_gna*", Moot: true,
		Text: "the holder announces itself at once, several times, and every 30 s"},
	draft.Remark{Keywords: "lvs_*", Moot: true, Text: draft.IsTuning},
)

// Keywords lists the words of keepalived.conf that are known, and what becomes of them.
func Keywords() []draft.Keyword {
	notify := draft.NewRemarks(
		draft.Remark{Keywords: "notify_*", Text: noEvent},
		draft.Remark{Keywords: "smtp_alert", Text: "no mail is sent; a hook can run a program"})
	return slices.Concat(
		draft.Keywords("top", []string{"vrrp_script", "vrrp_track_process", "vrrp_instance", "vrrp_sync_group", "virtual_server",
			"virtual_server_group", "global_defs", "$NAME="}, remarks),
		draft.Keywords("global_defs", []string{"script_user"}, globalRemarks),
		draft.Keywords("vrrp_instance", []string{"interface", "virtual_ipaddress", "virtual_ipaddress_excluded",
			"unicast_src_ip", "mcast_src_ip", "unicast_peer", "track_script", "track_process", "notify", "notify_master",
			"notify_backup", "notify_fault", "notify_stop"},
			instanceRemarks, notify, draft.NewRemarks(draft.Remark{Keywords: "state priority", Moot: true, Text: isEqual})),
		draft.Keywords("vrrp_script", []string{"script", "interval", "timeout", "rise", "fall", "weight", "user"},
			scriptRemarks),
		draft.Keywords("vrrp_track_process", []string{"process", "full_command", "weight", "quorum", "delay", "fork_delay",
			"terminate_delay"}, processRemarks),
		draft.Keywords("virtual_server", draft.Words(lines), lineRemarks),
		draft.Keywords("real_server", []string{"weight", "uthreshold", "inhibit_on_failure", "TCP_CHECK", "HTTP_GET",
			"SSL_GET", "SMTP_CHECK", "MISC_CHECK", "notify_up", "notify_down", "virtualhost",
			"retry", "delay_before_retry", "connect_timeout",
			"delay_loop"},
			serverRemarks),
		draft.Keywords("TCP_CHECK, HTTP_GET, SSL_GET, SMTP_CHECK", draft.Words(checkLines, "url", "host", "helo_name"),
			checkRemarks),
	)
}

// readInstance reads a vrrp_instance.
func readInstance(d *draft.Draft, st syntax.Statement, user string) *instance {
	d.Group = true
	now := &instance{Statement: st, user: user}
	on := ""
	for _, l := range d.Lines(nil, st.Body) {
		if l.Words[0] == "interface" {
			on = d.ReadInterface(l.Statement)
		}
	}
	for _, l := range d.Lines(nil, st.Body) {
		name, rest := only(l)
		switch w := rest.Words[0]; {
		case w == "unicast_src_ip" || w == "mcast_src_ip":
			now.source(rest, name)
		case w == "unicast_peer":
			now.peers(rest)
		case name != "" && (w == "state" || w == "priority"):
			l.Moot(isEqual)
		case name != "":
			l.NoteAll(false, someMachines)
		default:
			now.line(l, on)
		}
	}
	return now
}

const someMachines = "is for some machines only; one file of ours fits all peers, write what they have in common"

// line reads a line of an instance on the interface of that name.
func (i *instance) line(l draft.Line, on string) {
	switch w := l.Words[0]; w {
	case "interface": // read before
	case "state":
		i.state = l
	case "priority":
		i.priority = l
	case "virtual_ipaddress", "virtual_ipaddress_excluded":
		for _, a := range l.Lines(nil, l.Body) {
			if name, _ := only(a); name != "" {
				a.Note(someMachines)
				continue
			}
			l.AddVIP(a.Statement, on)
		}
	default:
		switch {
		case useTracks(l):
		case strings.HasPrefix(w, "include"):
			l.Note("is not among these files, and may have virtual addresses or what watches them; convert that file too")
		case !l.Remark(instanceRemarks, w):
			readNotify(l, i.user, "INSTANCE", i.Arg(1))
		}
	}
}

// instanceRemarks are the keywords of a vrrp_instance that are noted and nothing else.
var instanceRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "track_interface", Text: "the link that has the virtual addresses is watched anyway; " +
		"others are not, write a track that runs a program"},
	draft.Remark{Keywords: "authentication", Moot: true, Text: "the group key takes its place"},
	draft.Remark{Keywords: "virtual_router_id", Moot: true,
		Text: isEqual},
	draft.Remark{Keywords: "advert_int", Moot: true,
		Text: "a killed holder is noticed at once, a silent one after group.heartbeat"},
	draft.Remark{Keywords: "dont_track_primary native_ipv6 version garp_master_delay garp_master_repeat " +
		"garp_master_refresh garp_master_refresh_repeat garp_lower_prio_delay garp_lower_prio_repeat " +
		"lower_prio_no_advert higher_prio_send_advert strict_mode check_unicast_src skip_check_adv_addr use_vmac " +
		"vmac_xmit_base debug accept linkbeat_use_polling lvs_sync_daemon_interface checksum_compatibility",
		Moot: true, Text: "has no meaning here"},
	draft.Remark{Keywords: "nopreempt preempt preempt_delay", Moot: true,
		Text: "the virtual address never moves unless another peer is better"},
	draft.Remark{Keywords: "track_file track_bfd", Text: isNoTrack},
	draft.Remark{Keywords: "virtual_routes virtual_rules",
		Text: "no routes or rules are written; a hook can: hooks: [{on: [holder], exec: [/path]}]"},
)

// notifyEvents are our events for keepalived's. A fault that is over makes a backup of an instance.
var notifyEvents = map[string]string{
	"notify_master": "holder", "notify_backup": "released, recovered", "notify_fault": "fault", "notify_stop": "stopped",
}

// notifyStates are the words by which the script of notify is told of a state, after whose it is (keepalived.conf(5)).
var notifyStates = []struct{ on, word string }{
	{"holder", "MASTER"}, {"released, recovered", "BACKUP"}, {"fault", "FAULT"}, {"stopped", "STOP"},
}

// readNotify reads the scripts that follow changes of state of a kind, INSTANCE or GROUP, by its name.
func readNotify(l draft.Line, user, kind, name string) {
	w := l.Words[0]
	switch on := notifyEvents[w]; {
	case on != "" || w == "notify":
		exec, why := command(l, l.Words[1:min(2, len(l.Words))]) // what follows is user and group
		if why != "" {
			l.Note("%s", why)
			return
		}
		if l.Arg(2) != "" {
			user = readUser(l, l.Arg(2))
		}
		if user == "" {
			l.Advise(noUser)
		}
		if w != "notify" {
			addHook(l, draft.HookDraft{Place: l.Place, On: on, Exec: exec, User: user})
			return
		}
		l.Advise("gets no priority as its fourth word, since there is none here that changes")
		for _, s := range notifyStates {
			addHook(l, draft.HookDraft{Place: l.Place, On: s.on, User: user,
				Exec: append(slices.Clone(exec), kind, name, s.word)})
		}
	case strings.HasPrefix(w, "notify"):
		l.Note(noEvent)
	case w == "smtp_alert":
		l.Note("no mail is sent; a hook can run a program")
	default:
		l.NoteAll(false, draft.IsUnknown)
	}
}

// addHook adds a hook, once for all instances that have the same.
func addHook(l draft.Line, h draft.HookDraft) {
	same := func(o draft.HookDraft) bool { return o.On == h.On && slices.Equal(o.Exec, h.Exec) }
	if !slices.ContainsFunc(l.Hooks, same) {
		l.Hooks = append(l.Hooks, h)
	}
}

const noEvent = "is no event here; hooks know holder, released, fault, recovered, stopped, " +
	"backend-up and backend-down"
