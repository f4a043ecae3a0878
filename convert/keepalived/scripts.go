package keepalived

import (
	"path"
	"slices"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

const (
	// defaultInterval is what keepalived means if a script has no interval.
	defaultInterval = time.Second
	// minInterval is the shortest interval of a track that our loader takes.
	minInterval = 100 * time.Millisecond
	// maxRuns is how long the runs that change a track's state may take together.
	maxRuns = 24 * time.Hour
	maxName = 64
)

// readScript reads a vrrp_script, which becomes a track if an instance names it. usual is the user of scripts that name
// none.
func readScript(d *draft.Draft, st syntax.Statement, usual string) {
	t := &draft.TrackDraft{Statement: st, Name: st.Arg(1)}
	named := false
	var timeoutAt, scriptAt draft.Line
	t.User = usual
	for _, l := range d.Lines(nil, st.Body) {
		switch l.Words[0] {
		case "script":
			named = true
			exec, why := command(l, l.Words[1:])
			if why != "" {
				l.Note("%s", why)
				continue
			}
			t.Exec, scriptAt = exec, l
		case "interval":
			l.Span(units, l.Arg(1), minInterval, draft.MaxInter, &t.Inter)
		case "timeout":
			l.Span(units, l.Arg(1), draft.MinInter, draft.MaxInter, &t.Timeout)
			timeoutAt = l
		case "rise":
			l.Number(l.Arg(1), 1, draft.MaxCount, &t.Rise)
		case "fall":
			l.Number(l.Arg(1), 1, draft.MaxCount, &t.Fall)
		case "weight":
			readWeight(l, 1, t)
		case "user":
			t.User = readUser(l, l.Arg(1))
		default:
			if !l.Remark(scriptRemarks, l.Words[0]) {
				l.Note(draft.IsUnknown)
			}
		}
	}
	if len(t.Exec) == 0 {
		if !named {
			d.Note(nil, st.Head(), "runs no script")
		}
		return
	}
	switch {
	case t.User == "" && slices.Contains([]string{"kill", "killall", "pkill"}, path.Base(t.Exec[0])):
		scriptAt.Advise("runs as nobody, who may not ask for processes of others, so that the track fails; write user: root, " +
			"or ask the server itself: check: {type: tcp, address: 127.0.0.1:80}")
	case t.User == "":
		scriptAt.Advise(noUser)
	}
	if t.Timeout.Set && !t.Inter.Set {
		t.Inter = draft.Span{Value: defaultInterval, Set: true}
	}
	if t.Timeout.Value > t.Inter.Value {
		t.Timeout.Value = t.Inter.Value
		timeoutAt.Advise("became %s, the interval: runs do not overlap", draft.Short(t.Inter.Value))
	}
	addTrack(d, t)
}

// addTrack adds a track, within the bounds of our loader.
func addTrack(d *draft.Draft, t *draft.TrackDraft) {
	at := slices.IndexFunc(d.Tracks, func(other *draft.TrackDraft) bool { return other.Name == t.Name })
	taken := at >= 0
	if taken && d.Tracks[at].Words[0] != t.Words[0] { // keepalived does not mind
		t.Name += "-2"
		taken = slices.ContainsFunc(d.Tracks, func(other *draft.TrackDraft) bool { return other.Name == t.Name })
	}
	if t.Name == "" || taken || !draft.ValidName(t.Name, maxName) {
		d.Note(nil, t.Head(), "has a name that a track cannot have, or that another has")
		return
	}
	for _, n := range []*draft.Number{&t.Rise, &t.Fall} {
		if most := int(maxRuns / max(t.Inter.Value, defaultInterval)); n.Value > most {
			d.Advise(nil, t.Head(), "so many runs would take longer than a day; became %d", most)
			n.Value = most
		}
	}
	d.Tracks = append(d.Tracks, t)
}

const noUser = "runs as nobody, where keepalived took keepalived_script or root; write user: ... if it needs another"

// readUser reads the name of a user, empty if it cannot be one.
func readUser(l draft.Line, name string) string {
	if draft.Placeholder(name) || !draft.ValidName(name, maxName) || strings.ContainsAny(name, " :/") {
		l.Note("%s is no user's name", syntax.Printable(name))
		return ""
	}
	return name
}

// scriptRemarks are the keywords of a vrrp_script that are noted and nothing else.
var scriptRemarks = draft.NewRemarks(
	draft.Remark{Keywords: "init_fail", Text: "the first run decides"},
)

// trackLists are the lists that name the tracks of each kind.
var trackLists = map[string]string{"vrrp_script": "track_script", "vrrp_track_process": "track_process"}

// useTracks reads a list of names of tracks, and reports whether l is one.
func useTracks(l draft.Line) bool {
	for kind, list := range trackLists {
		if list == l.Words[0] {
			for _, name := range l.Lines(nil, l.Body) {
				useTrack(name, kind)
			}
			return true
		}
	}
	return false
}

// useTrack marks a track of a kind as used; a weight here is the instance's own.
func useTrack(l draft.Line, kind string) {
	for _, t := range l.Tracks {
		if t.Arg(1) != l.Words[0] || t.Words[0] != kind {
			continue
		}
		t.Used = true
		if l.Arg(1) == "weight" {
			readWeight(l, 2, t)
		}
		return
	}
	l.Note("its %s was not carried over, or is not in these files", kind)
}

// readWeight reads what a failed script costs. keepalived adds the weight to the priority, or subtracts it; only the
// difference matters. The weight is the word at i. With reverse after it, a script that succeeds costs it, which no
// track does.
func readWeight(l draft.Line, i int, t *draft.TrackDraft) {
	if l.Arg(i+1) == "reverse" {
		l.Note("a track fails when its program does, never the contrary; " +
			"write a script that says so, and name it in tracks")
		t.Reverse = true
		return
	}
	var w draft.Number
	l.Number(l.Arg(i), -254, 254, &w)
	if w.Value < 0 {
		w.Value = -w.Value
	}
	if w.Set && w.Value != 0 { // 0 is the same as none: a failure bars the node
		t.Weight = w
	}
}

// splitWords cuts a line into words as keepalived does: what quotes enclose, and what a backslash precedes, is part of
// one.
func splitWords(line string) (words []string, balanced bool) {
	var word strings.Builder
	var quote rune
	begun, escaped := false, false
	for _, r := range line + " " {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			begun, escaped = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			begun, quote = true, r
		case r == ' ' || r == '\t':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			begun = true
			word.WriteRune(r)
		}
	}
	return words, quote == 0 && !escaped
}

// isOfReplaced reports whether what a line says is about a program that the appliance takes the place of.
func isOfReplaced(l draft.Line, line string) bool {
	return !l.Alone && !l.GoesOn && (strings.Contains(line, "haproxy") || strings.Contains(line, "nginx"))
}

const looksAfterReplaced = "looks after a program that is not needed any more; " +
	"a holder whose load balancers have no healthy backend gives way by itself"

// command splits the line of a script, as keepalived does without a shell; why says why it cannot be run.
func command(l draft.Line, words []string) (exec []string, why string) {
	line := strings.Join(words, " ")
	exec, balanced := splitWords(line)
	switch {
	case !balanced:
		return nil, "has a quote that is left open"
	case len(exec) == 0:
		return nil, "names no program"
	case strings.ContainsRune(line, 0):
		return nil, "has a zero byte, which no program can be given"
	case isOfReplaced(l, line):
		return nil, looksAfterReplaced
	case syntax.HasSecret(line):
		return nil, "has a secret among its words, which is not copied; " +
			"put it in a script that only root may read, and name that in tracks or hooks: exec: [/path]"
	case strings.ContainsAny(line, "|&;<>`"):
		return nil, "is for a shell, and none is asked; " +
			"put it in a file that only root may write, with #!/bin/sh and mode 0700, and name that in tracks or hooks"
	case draft.Placeholder(line):
		return nil, draft.Unfilled
	case strings.Contains(exec[0], "/") && !strings.HasPrefix(exec[0], "/"):
		return nil, "has no absolute path; write it in tracks or hooks: exec: [/path, ...]"
	case !strings.HasPrefix(exec[0], "/"):
		exec[0] = "/usr/bin/" + exec[0]
		l.Advise("became %s: keepalived looks for the program in PATH; write its path if it is elsewhere", exec[0])
	}
	return exec, ""
}
