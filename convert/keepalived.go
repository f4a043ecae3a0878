package convert

import (
	"slices"
	"strings"
	"time"
)

// keepalived reads a keepalived.conf.
func (d *draft) keepalived(list []statement) error {
	groups := map[string]statement{}
	for _, st := range list {
		switch st.words[0] {
		case "vrrp_script":
			d.vrrpScript(st)
		case "virtual_server_group":
			groups[st.arg(1)] = st
		}
	}
	for _, st := range list {
		switch st.words[0] {
		case "vrrp_script", "virtual_server_group":
		case "vrrp_instance":
			d.vrrpInstance(st)
		case "vrrp_sync_group":
			d.vrrpSyncGroup(st)
		case "virtual_server":
			d.virtualServer(st, groups)
		case "global_defs":
			d.globalDefs(st)
		case "include", "includer", "includem", "includew", "includeb", "includea":
			d.note(nil, st, "nothing is included; convert those files too")
		case "vrrp_track_process", "track_process", "vrrp_track_file", "track_file", "bfd_instance", "static_ipaddress", "static_routes", "static_rules":
			d.leave(nil, st, false, "is not there; a track that runs a program can look at anything: tracks: [{name: x, exec: [/path]}]")
		default:
			if strings.HasPrefix(st.words[0], "@") {
				d.leave(nil, st, false, "is for some machines only; one file of ours fits all peers, write what they have in common")
				continue
			}
			d.leave(nil, st, false, "is not known")
		}
	}
	for _, t := range d.tracks {
		if !t.used {
			d.leave(nil, t.statement, true, "no track_script names it")
		}
	}
	d.tracks = slices.DeleteFunc(d.tracks, func(t *track) bool { return !t.used })
	for _, name := range sortedKeys(groups) {
		if !slices.ContainsFunc(list, func(st statement) bool {
			return st.words[0] == "virtual_server" && st.arg(1) == "group" && st.arg(2) == name
		}) {
			d.leave(nil, groups[name], true, "no virtual_server uses it")
		}
	}
	return nil
}

func (d *draft) globalDefs(st statement) {
	for _, line := range st.body {
		switch w := line.words[0]; {
		case w == "notification_email" || strings.HasPrefix(w, "smtp_"):
			d.leave(nil, line, false, "no mail is sent; a hook can run a program: hooks: [{on: [holder, released], exec: [/path]}]")
		case w == "vrrp_script_user" || w == "script_user" || w == "enable_script_security":
			d.moot(nil, line, "scripts run as the appliance does, and only if nobody else can write them")
		case strings.HasPrefix(w, "vrrp_garp") || strings.HasPrefix(w, "vrrp_gna"):
			d.moot(nil, line, "the holder announces itself at once, several times, and every 30 s")
		case strings.HasPrefix(w, "lvs_"):
			d.moot(nil, line, isTuning)
		default:
			d.leave(nil, line, true, "has no meaning here")
		}
	}
}

func (d *draft) vrrpSyncGroup(st statement) {
	for _, line := range st.body {
		if line.words[0] == "group" {
			continue // all virtual addresses have one holder
		}
		d.vrrpNotify(line)
	}
}

// vrrpScript reads what becomes a track where an instance names it.
func (d *draft) vrrpScript(st statement) {
	t := &track{statement: st, name: st.arg(1), used: true}
	usable := false
	var patience statement
	for _, line := range st.body {
		switch line.words[0] {
		case "script":
			exec, why := command(line.words[1:])
			if why != "" {
				d.note(nil, line, "%s", why)
				continue
			}
			t.exec, usable = exec, true
		case "interval":
			d.span(nil, line, secondUnits, line.arg(1), minRun, maxInter, &t.inter)
		case "timeout":
			d.span(nil, line, secondUnits, line.arg(1), minInter, maxInter, &t.timeout)
			patience = line
		case "rise":
			d.count(nil, line, line.arg(1), 1, maxCount, &t.rise)
		case "fall":
			d.count(nil, line, line.arg(1), 1, maxCount, &t.fall)
		case "weight":
			d.trackWeight(line, line.arg(1), t)
		case "init_fail":
			d.note(nil, line, "the first run decides")
		case "user":
			d.note(nil, line, "scripts run as the appliance does")
		default:
			d.note(nil, line, "is not known")
		}
	}
	if !usable {
		if !slices.ContainsFunc(st.body, func(l statement) bool { return l.words[0] == "script" }) {
			d.note(nil, statement{place: st.place, words: st.words}, "runs no script")
		}
		return
	}
	if t.timeout.said && !t.inter.said {
		t.inter = span{vrrpInterval, true}
	}
	if t.timeout.d > t.inter.d {
		t.timeout.d = t.inter.d
		d.advise(nil, patience, "became %s, the interval: runs do not overlap", short(t.inter.d))
	}
	if len(t.name) > 64 || strings.TrimSpace(t.name) != t.name || printable(t.name) != t.name || t.name == "" ||
		slices.ContainsFunc(d.tracks, func(other *track) bool { return other.name == t.name }) {
		d.note(nil, statement{place: st.place, words: st.words}, "has a name that a track cannot have, or that another has")
		return
	}
	for _, n := range []*count{&t.rise, &t.fall} {
		if most := int(24 * time.Hour / max(t.inter.d, vrrpInterval)); n.n > most {
			d.advise(nil, statement{place: st.place, words: st.words}, "so many runs would take longer than a day; became %d", most)
			n.n = most
		}
	}
	t.used = false
	d.tracks = append(d.tracks, t)
}

// trackWeight reads what a failed script costs. keepalived adds the weight to
// the priority, or takes it away; only the difference matters.
func (d *draft) trackWeight(st statement, word string, t *track) {
	var w count
	d.count(nil, st, word, -254, 254, &w)
	if w.n < 0 {
		w.n = -w.n
	}
	if w.said && w.n != 0 { // 0 is the same as none: a failure bars
		t.weight = w
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
	case placeholder(line):
		return nil, fillIn
	case !strings.HasPrefix(exec[0], "/"):
		return nil, "has no absolute path; write it in tracks or hooks: exec: [/usr/bin/" + exec[0] + ", ...]"
	}
	return exec, ""
}

func (d *draft) vrrpInstance(st statement) {
	d.group = true
	for _, line := range st.body {
		switch w := line.words[0]; w {
		case "interface":
			d.vrrpInterface(line)
		case "virtual_ipaddress", "virtual_ipaddress_excluded":
			for _, a := range line.body {
				d.vrrpAddress(a)
			}
		case "unicast_src_ip", "mcast_src_ip":
			if a, ok := readAddr(line.arg(1)); ok {
				d.own = append(d.own, a)
				if w == "unicast_src_ip" {
					d.peers = append(d.peers, peer{place: line.place, addr: a})
				}
				continue
			}
			d.note(nil, line, "%s", wrongAddr(line.arg(1)))
		case "unicast_peer":
			for _, a := range line.body {
				if addr, ok := readAddr(a.arg(0)); ok {
					d.peers = append(d.peers, peer{place: a.place, addr: addr})
					continue
				}
				d.note(nil, a, "%s", wrongAddr(a.arg(0)))
			}
		case "track_script":
			for _, name := range line.body {
				d.trackScript(name)
			}
		case "track_interface":
			d.leave(nil, line, false, "the link that has the virtual addresses is watched anyway; others are not, write a track that runs a program")
		case "authentication":
			d.leave(nil, line, true, "the group key takes its place")
		case "state", "priority", "virtual_router_id":
			d.moot(nil, line, "the peers elect among themselves; all are equal until a track says otherwise")
		case "advert_int":
			d.moot(nil, line, "a killed holder is noticed at once, a silent one after group.heartbeat")
		case "dont_track_primary", "native_ipv6", "version", "garp_master_delay", "garp_master_repeat", "garp_master_refresh", "garp_master_refresh_repeat",
			"garp_lower_prio_delay", "garp_lower_prio_repeat", "lower_prio_no_advert", "higher_prio_send_advert", "strict_mode", "check_unicast_src", "skip_check_adv_addr", "use_vmac", "vmac_xmit_base", "debug", "accept", "linkbeat_use_polling", "lvs_sync_daemon_interface", "checksum_compatibility":
			d.moot(nil, line, "has no meaning here")
		case "nopreempt", "preempt", "preempt_delay":
			d.moot(nil, line, "the virtual address never moves unless another peer is better")
		case "virtual_routes", "virtual_rules":
			d.leave(nil, line, false, "no routes or rules are written; a hook can: hooks: [{on: [holder], exec: [/path]}]")
		default:
			d.vrrpNotify(line)
		}
	}
}

func (d *draft) vrrpInterface(st statement) {
	name := st.arg(1)
	switch {
	case placeholder(name):
		d.note(nil, st, "%s; without it, the interface is the one whose subnet has the virtual address", "is still to be filled in")
	case name == "" || len(name) > 15 || strings.ContainsAny(name, "/ :%") || printable(name) != name:
		d.note(nil, st, "is no interface's name")
	case d.iface == "":
		d.iface = name
	case d.iface != name:
		d.note(nil, st, "is another interface than %s; remove interface below, and each virtual address finds its own by its subnet", d.iface)
	}
}

// vrrpAddress reads address[/length] [dev x] [label y] ...
func (d *draft) vrrpAddress(st statement) {
	word, _, _ := strings.Cut(st.words[0], "/")
	a, ok := readAddr(word)
	switch {
	case !ok:
		d.note(nil, st, "%s", wrongAddr(word))
		return
	case a.IsLoopback():
		d.note(nil, st, "is a loopback address, which no other machine can reach")
		return
	case d.hasVIP(a):
		d.note(nil, st, "is there twice")
		return
	}
	d.vips = append(d.vips, vip{st.place, a})
	for i, w := range st.words[1:] {
		switch w {
		case "dev":
			d.vrrpInterface(statement{place: st.place, words: []string{"dev", st.arg(i + 2)}})
		case "label", "brd", "broadcast", "scope", "nodad", "home", "noprefixroute", "mngtmpaddr", "-nodad":
		}
	}
}

// trackScript marks a script as used; a weight here is the instance's own.
func (d *draft) trackScript(st statement) {
	for _, t := range d.tracks {
		if t.name != st.words[0] {
			continue
		}
		t.used = true
		if st.arg(1) == "weight" {
			d.trackWeight(st, st.arg(2), t)
		}
		return
	}
	d.note(nil, st, "its vrrp_script was not carried over, or is not in these files")
}

// vrrpNotify reads the scripts that follow changes of state.
func (d *draft) vrrpNotify(st statement) {
	on := map[string]string{"notify_master": "holder", "notify_backup": "released", "notify_fault": "released", "notify_stop": "released"}[st.words[0]]
	switch {
	case on != "":
		exec, why := command(st.words[1:])
		if why != "" {
			d.note(nil, st, "%s", why)
			return
		}
		d.hooks = append(d.hooks, hook{st.place, on, exec})
	case st.words[0] == "notify":
		d.note(nil, st, "wants the arguments INSTANCE name MASTER|BACKUP; write hooks: [{on: [holder], exec: [/path, INSTANCE, name, MASTER]}, {on: [released], ...}]")
	case strings.HasPrefix(st.words[0], "notify"):
		d.note(nil, st, "is no event here; hooks know holder, released, backend-up and backend-down")
	case st.words[0] == "smtp_alert":
		d.note(nil, st, "no mail is sent; a hook can run a program")
	default:
		d.leave(nil, st, false, "is not known")
	}
}
