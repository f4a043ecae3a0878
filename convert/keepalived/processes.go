package keepalived

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

const (
	// maxComm is how much of a process's name Linux keeps (TASK_COMM_LEN, without its last byte).
	maxComm = 15
	// processInterval is how often a process is looked for, which keepalived hears of at once.
	processInterval = time.Second
)

const (
	writeScript = "write a script that looks for it, and name that in tracks: [{name: x, exec: [/path]}]"
	onlyPgrep   = "is more than pgrep looks for, which finds processes here; " + writeScript
)

// processRemarks are the keywords of a vrrp_track_process for which it is not carried over.
var processRemarks = draft.NewRemarks(draft.Remark{Keywords: "quorum_max param_match", Text: onlyPgrep})

// readProcess reads a vrrp_track_process, which becomes a track that asks pgrep whether the process runs.
func readProcess(d *draft.Draft, st syntax.Statement) {
	once := draft.Number{Value: 1, Set: true}
	t := &draft.TrackDraft{
		Statement: st, Name: st.Arg(1), Inter: draft.Span{Value: processInterval, Set: true},
		Rise: once, Fall: once, Weight: once, // the weight is keepalived's default
	}
	var process draft.Line
	whole, lost := false, false
	for _, l := range d.Lines(nil, st.Body) {
		switch l.Words[0] {
		case "process":
			process = l
		case "full_command":
			whole = true
		case "weight":
			t.Weight = draft.Number{}
			readWeight(l, 1, t)
		case "quorum":
			if l.Arg(1) != "1" {
				l.Note(onlyPgrep)
				lost = true
			}
		case "fork_delay":
			readDelay(l, &t.Rise)
		case "terminate_delay":
			readDelay(l, &t.Fall)
		case "delay":
			readDelay(l, &t.Rise, &t.Fall)
		default:
			if !l.Remark(processRemarks, l.Words[0]) {
				l.Note(draft.IsUnknown)
			}
			lost = true
		}
	}
	if len(process.Words) < 2 {
		d.Note(nil, st.Head(), "names no process")
		return
	}
	exec, why := pgrep(process, whole)
	if why != "" {
		process.Note("%s", why)
	}
	if lost || why != "" || t.Reverse {
		return
	}
	t.Exec = exec
	process.Advise("became a track that asks pgrep each second; it has to be at that path on every node, " +
		"and a process that has ended counts until its parent knows")
	addTrack(d, t)
}

// pgrep is the command that finds a process by its name, or by its whole command line; why says why there is none.
func pgrep(l draft.Line, whole bool) (exec []string, why string) {
	name, option := strings.Join(l.Words[1:], " "), "-fx"
	switch {
	case isOfReplaced(l, name):
		return nil, looksAfterReplaced
	case draft.Placeholder(name):
		return nil, draft.Unfilled
	case syntax.HasSecret(name):
		return nil, "has a secret among its words, which is not copied; " + writeScript
	case whole || len(l.Words) > 2:
	case strings.Contains(name, "/"):
		return nil, "is a path, and keepalived looks for a process of that name; " +
			"write full_command or the name, and convert again"
	default:
		name, option = name[:min(len(name), maxComm)], "-x"
	}
	return []string{"/usr/bin/pgrep", option, regexp.QuoteMeta(name)}, ""
}

// readDelay reads for how long a process has to be there, or to be away, until that counts.
func readDelay(l draft.Line, into ...*draft.Number) {
	seconds, err := strconv.ParseFloat(l.Arg(1), 64)
	if err != nil || seconds < 0 || seconds > draft.MaxCount-1 {
		l.Note("is no time from 0 to %d seconds", draft.MaxCount-1)
		return
	}
	for _, n := range into {
		n.Value = 1 + int(math.Ceil(seconds))
	}
}
