package keepalived

import (
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// Read reads a keepalived.conf.
func Read(d *draft.Draft, list []syntax.Statement) error {
	groups := map[string]syntax.Statement{}
	for _, st := range list {
		switch st.Words[0] {
		case "vrrp_script":
			vrrpScript(d, st)
		case "virtual_server_group":
			groups[st.Arg(1)] = st
		}
	}
	for _, st := range list {
		switch st.Words[0] {
		case "vrrp_script", "virtual_server_group":
		case "vrrp_instance":
			vrrpInstance(d, st)
		case "vrrp_sync_group":
			vrrpSyncGroup(d, st)
		case "virtual_server":
			virtualServer(d, st, groups)
		case "global_defs":
			globalDefs(d, st)
		case "include", "includer", "includem", "includew", "includeb", "includea":
			d.Note(nil, st, "nothing is included; convert those files too")
		case "vrrp_track_process", "track_process", "vrrp_track_file", "track_file", "bfd_instance", "static_ipaddress", "static_routes", "static_rules":
			d.NoteAll(nil, st, false, "is not there; a track that runs a program can look at anything: tracks: [{name: x, exec: [/path]}]")
		default:
			if strings.HasPrefix(st.Words[0], "@") {
				d.NoteAll(nil, st, false, "is for some machines only; one file of ours fits all peers, write what they have in common")
				continue
			}
			d.NoteAll(nil, st, false, "is not known")
		}
	}
	for _, t := range d.Tracks {
		if !t.Used {
			d.NoteAll(nil, t.Statement, true, "no track_script names it")
		}
	}
	d.Tracks = slices.DeleteFunc(d.Tracks, func(t *draft.TrackEntry) bool { return !t.Used })
	for _, name := range sortedKeys(groups) {
		if !slices.ContainsFunc(list, func(st syntax.Statement) bool {
			return st.Words[0] == "virtual_server" && st.Arg(1) == "group" && st.Arg(2) == name
		}) {
			d.NoteAll(nil, groups[name], true, "no virtual_server uses it")
		}
	}
	return nil
}

func globalDefs(d *draft.Draft, st syntax.Statement) {
	for _, line := range st.Body {
		switch w := line.Words[0]; {
		case w == "notification_email" || strings.HasPrefix(w, "smtp_"):
			d.NoteAll(nil, line, false, "no mail is sent; a hook can run a program: hooks: [{on: [holder, released], exec: [/path]}]")
		case w == "vrrp_script_user" || w == "script_user" || w == "enable_script_security":
			d.Moot(nil, line, "scripts run as the appliance does, and only if nobody else can write them")
		case strings.HasPrefix(w, "vrrp_garp") || strings.HasPrefix(w, "vrrp_gna"):
			d.Moot(nil, line, "the holder announces itself at once, several times, and every 30 s")
		case strings.HasPrefix(w, "lvs_"):
			d.Moot(nil, line, draft.IsTuning)
		default:
			d.NoteAll(nil, line, true, "has no meaning here")
		}
	}
}

func vrrpSyncGroup(d *draft.Draft, st syntax.Statement) {
	for _, line := range st.Body {
		if line.Words[0] == "group" {
			continue // all virtual addresses have one holder
		}
		vrrpNotify(d, line)
	}
}

// vrrpScript reads what becomes a track where an instance names it.
func vrrpScript(d *draft.Draft, st syntax.Statement) {
	t := &draft.TrackEntry{Statement: st, Name: st.Arg(1), Used: true}
	usable := false
	var patience syntax.Statement
	for _, line := range st.Body {
		switch line.Words[0] {
		case "script":
			exec, why := command(line.Words[1:])
			if why != "" {
				d.Note(nil, line, "%s", why)
				continue
			}
			t.Exec, usable = exec, true
		case "interval":
			d.ReadSpan(nil, line, seconds, line.Arg(1), minRun, draft.MaxInter, &t.Inter)
		case "timeout":
			d.ReadSpan(nil, line, seconds, line.Arg(1), draft.MinInter, draft.MaxInter, &t.Timeout)
			patience = line
		case "rise":
			d.ReadNumber(nil, line, line.Arg(1), 1, draft.MaxCount, &t.Rise)
		case "fall":
			d.ReadNumber(nil, line, line.Arg(1), 1, draft.MaxCount, &t.Fall)
		case "weight":
			trackWeight(d, line, line.Arg(1), t)
		case "init_fail":
			d.Note(nil, line, "the first run decides")
		case "user":
			d.Note(nil, line, "scripts run as the appliance does")
		default:
			d.Note(nil, line, "is not known")
		}
	}
	if !usable {
		if !slices.ContainsFunc(st.Body, func(l syntax.Statement) bool { return l.Words[0] == "script" }) {
			d.Note(nil, syntax.Statement{Place: st.Place, Words: st.Words}, "runs no script")
		}
		return
	}
	if t.Timeout.Set && !t.Inter.Set {
		t.Inter = draft.Span{Value: defaultInterval, Set: true}
	}
	if t.Timeout.Value > t.Inter.Value {
		t.Timeout.Value = t.Inter.Value
		d.Advise(nil, patience, "became %s, the interval: runs do not overlap", draft.Short(t.Inter.Value))
	}
	if len(t.Name) > 64 || strings.TrimSpace(t.Name) != t.Name || syntax.Printable(t.Name) != t.Name || t.Name == "" ||
		slices.ContainsFunc(d.Tracks, func(other *draft.TrackEntry) bool { return other.Name == t.Name }) {
		d.Note(nil, syntax.Statement{Place: st.Place, Words: st.Words}, "has a name that a track cannot have, or that another has")
		return
	}
	for _, n := range []*draft.Number{&t.Rise, &t.Fall} {
		if most := int(24 * time.Hour / max(t.Inter.Value, defaultInterval)); n.Value > most {
			d.Advise(nil, syntax.Statement{Place: st.Place, Words: st.Words}, "so many runs would take longer than a day; became %d", most)
			n.Value = most
		}
	}
	t.Used = false
	d.Tracks = append(d.Tracks, t)
}

// trackWeight reads what a failed script costs. keepalived adds the weight to
// the priority, or takes it away; only the difference matters.
func trackWeight(d *draft.Draft, st syntax.Statement, word string, t *draft.TrackEntry) {
	var w draft.Number
	d.ReadNumber(nil, st, word, -254, 254, &w)
	if w.Value < 0 {
		w.Value = -w.Value
	}
	if w.Set && w.Value != 0 { // 0 is the same as none: a failure bars
		t.Weight = w
	}
}

// command splits a script's line, as keepalived does: no shell is asked.
func command(words []string) (exec []string, why string) {
	for _, w := range words {
		exec = append(exec, strings.Fields(w)...)
	}
	line := strings.Join(exec, " ")
	switch {
	case len(exec) == 0:
		return nil, "names no program"
	case strings.Contains(line, "haproxy") || strings.Contains(line, "nginx"):
		return nil, "looks after a program that is not needed any more; a holder whose load balancers have no healthy backend gives way by itself"
	case strings.ContainsAny(line, "|&;<>`"):
		return nil, "is for a shell, and none is asked; put it in a file that only root may write, with #!/bin/sh and mode 0700, and name that in tracks or hooks"
	case draft.Placeholder(line):
		return nil, draft.Unfilled
	case !strings.HasPrefix(exec[0], "/"):
		return nil, "has no absolute path; write it in tracks or hooks: exec: [/usr/bin/" + exec[0] + ", ...]"
	}
	return exec, ""
}

func vrrpInstance(d *draft.Draft, st syntax.Statement) {
	d.Group = true
	for _, line := range st.Body {
		switch w := line.Words[0]; w {
		case "interface":
			d.SetInterface(line)
		case "virtual_ipaddress", "virtual_ipaddress_excluded":
			for _, a := range line.Body {
				d.AddVIP(a)
			}
		case "unicast_src_ip", "mcast_src_ip":
			if a, ok := draft.ReadAddr(line.Arg(1)); ok {
				d.Own = append(d.Own, a)
				if w == "unicast_src_ip" {
					d.Peers = append(d.Peers, draft.PeerEntry{Place: line.Place, Addr: a})
				}
				continue
			}
			d.Note(nil, line, "%s", draft.WrongAddr(line.Arg(1)))
		case "unicast_peer":
			for _, a := range line.Body {
				if addr, ok := draft.ReadAddr(a.Arg(0)); ok {
					d.Peers = append(d.Peers, draft.PeerEntry{Place: a.Place, Addr: addr})
					continue
				}
				d.Note(nil, a, "%s", draft.WrongAddr(a.Arg(0)))
			}
		case "track_script":
			for _, name := range line.Body {
				trackScript(d, name)
			}
		case "track_interface":
			d.NoteAll(nil, line, false, "the link that has the virtual addresses is watched anyway; others are not, write a track that runs a program")
		case "authentication":
			d.NoteAll(nil, line, true, "the group key takes its place")
		case "state", "priority", "virtual_router_id":
			d.Moot(nil, line, "the peers elect among themselves; all are equal until a track says otherwise")
		case "advert_int":
			d.Moot(nil, line, "a killed holder is noticed at once, a silent one after group.heartbeat")
		case "dont_track_primary", "native_ipv6", "version", "garp_master_delay", "garp_master_repeat", "garp_master_refresh", "garp_master_refresh_repeat",
			"garp_lower_prio_delay", "garp_lower_prio_repeat", "lower_prio_no_advert", "higher_prio_send_advert", "strict_mode", "check_unicast_src", "skip_check_adv_addr", "use_vmac", "vmac_xmit_base", "debug", "accept", "linkbeat_use_polling", "lvs_sync_daemon_interface", "checksum_compatibility":
			d.Moot(nil, line, "has no meaning here")
		case "nopreempt", "preempt", "preempt_delay":
			d.Moot(nil, line, "the virtual address never moves unless another peer is better")
		case "virtual_routes", "virtual_rules":
			d.NoteAll(nil, line, false, "no routes or rules are written; a hook can: hooks: [{on: [holder], exec: [/path]}]")
		default:
			vrrpNotify(d, line)
		}
	}
}

// trackScript marks a script as used; a weight here is the instance's own.
func trackScript(d *draft.Draft, st syntax.Statement) {
	for _, t := range d.Tracks {
		if t.Name != st.Words[0] {
			continue
		}
		t.Used = true
		if st.Arg(1) == "weight" {
			trackWeight(d, st, st.Arg(2), t)
		}
		return
	}
	d.Note(nil, st, "its vrrp_script was not carried over, or is not in these files")
}

// vrrpNotify reads the scripts that follow changes of state.
func vrrpNotify(d *draft.Draft, st syntax.Statement) {
	on := map[string]string{"notify_master": "holder", "notify_backup": "released", "notify_fault": "released", "notify_stop": "released"}[st.Words[0]]
	switch {
	case on != "":
		exec, why := command(st.Words[1:])
		if why != "" {
			d.Note(nil, st, "%s", why)
			return
		}
		d.Hooks = append(d.Hooks, draft.HookEntry{Place: st.Place, On: on, Exec: exec})
	case st.Words[0] == "notify":
		d.Note(nil, st, "wants the arguments INSTANCE name MASTER|BACKUP; write hooks: [{on: [holder], exec: [/path, INSTANCE, name, MASTER]}, {on: [released], ...}]")
	case strings.HasPrefix(st.Words[0], "notify"):
		d.Note(nil, st, "is no event here; hooks know holder, released, backend-up and backend-down")
	case st.Words[0] == "smtp_alert":
		d.Note(nil, st, "no mail is sent; a hook can run a program")
	default:
		d.NoteAll(nil, st, false, "is not known")
	}
}

// Grammar is the grammar of this format.
var Grammar = syntax.Grammar{Comments: "#!", Inside: true, Braces: true}

var seconds = draft.Units{Bare: time.Second, Named: map[string]time.Duration{
	"s": time.Second,
}}

// What keepalived means where it says nothing.
const (
	defaultPersistence = 6 * time.Minute
	defaultDelay       = time.Minute
	defaultInterval    = time.Second
	minRun             = 100 * time.Millisecond
)
