package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The arrows of the house: what each room may import of ours, and why no more.
var arrows = map[string]struct {
	may []string
	why string
}{
	"appliance/balancer": {[]string{"appliance/balancer/exchange", "appliance/balancer/rawtcp"},
		"it declares the small interfaces it needs, and what a server has to say is asked without knowing why"},
	"appliance/balancer/exchange": {nil, "a conversation does not know what follows from it"},
	"appliance/connlog":           {nil, "lines are chosen and written without knowing what they say"},
	"appliance/dns":               {nil, "a name is looked up without knowing what is at its addresses"},
	"appliance/balancer/rawtcp":   {nil, "a system call does not know what for"},
	"appliance/balancer/forward": {[]string{"appliance/balancer", "appliance/balancer/rawtcp", "appliance/connlog"},
		"a data plane does not know who chose it, nor where its lines go"},
	"appliance/raft": {[]string{
		"appliance/raft/auth", "appliance/raft/deathwatch", "appliance/raft/detector", "appliance/raft/feed",
		"appliance/raft/fence", "appliance/raft/founding", "appliance/raft/giveway", "appliance/raft/lease",
		"appliance/raft/notify", "appliance/raft/peerport", "appliance/raft/raftlog", "appliance/raft/settings",
		"appliance/raft/standstill", "appliance/raft/store", "appliance/raft/transport",
	}, "who holds is decided without knowing what for"},
	"appliance/raft/auth": {[]string{"appliance/keyfile"}, "who somebody is does not depend on what is asked"},
	"appliance/raft/deathwatch": {[]string{"appliance/raft/peerport"},
		"a death is proved without knowing what follows from it"},
	"appliance/raft/detector": {nil, "a host that is silent is found without knowing what raft is"},
	"appliance/raft/feed": {[]string{"appliance/raft/auth", "appliance/raft/notify", "appliance/raft/peerport"},
		"a worker needs nothing of the group but its peer port"},
	"appliance/raft/giveway":  {nil, "how often a holder may give way does not depend on how it does"},
	"appliance/raft/fence":    {nil, "who is a stranger is judged by what peers tell, however it is carried"},
	"appliance/raft/founding": {nil, "which of two groups goes on is a pure function of what both show"},
	"appliance/raft/lease":    {nil, "that no two peers answer at once is argued from what is in this package alone"},
	"appliance/raft/notify":   {nil, "that something has changed is told without knowing what"},
	"appliance/raft/peerport": {[]string{"appliance/raft/auth"}, "the port knows who connects, not what is said"},
	"appliance/raft/raftlog":  {nil, "log lines are passed on as they are"},
	"appliance/raft/recovery": {[]string{"appliance/raft/raftlog", "appliance/raft/settings", "appliance/raft/store"},
		"a group that does not run is repaired on disk"},
	"appliance/raft/settings":   {nil, "what the group replicates does not know who reads it"},
	"appliance/raft/standstill": {nil, "that a machine stood still is seen by clocks, whatever they are for"},
	"appliance/raft/store":      {nil, "the disk keeps what it is given"},
	"appliance/raft/transport": {[]string{"appliance/raft/fence", "appliance/raft/notify", "appliance/raft/peerport"},
		"RPCs are carried by rules that are handed in"},

	"appliance/sysctl": {nil, "a kernel parameter is set without knowing for whom"},
	"appliance/flood":  {nil, "who sends too much is seen by counting, whatever it is about"},
	"appliance/arp": {[]string{"appliance/flood", "appliance/sysctl"},
		"the wire is told when it may answer, and never asks why"},
	"appliance/routes":     {nil, "routes are kept for a daemon that nobody here knows"},
	"appliance/bfd":        {nil, "a router is watched without knowing what for"},
	"appliance/bgp":        {nil, "routers are told what is wanted, whoever wants it and why"},
	"appliance/segment":    {nil, "a segment is bytes; who sends it is unknown here"},
	"appliance/neighbours": {nil, "links and neighbours are read from the kernel, whoever asks"},
	"appliance/pathprobe": {[]string{"appliance/flood", "appliance/neighbours", "appliance/segment"},
		"a path is proved without knowing which rules wait for the proof"},
	"appliance/proof": {[]string{"appliance/neighbours", "appliance/segment"},
		"a client is imitated and its answers judged without knowing what a data plane is"},
	"appliance/nft": {
		[]string{
			"appliance/balancer", "appliance/neighbours", "appliance/nft/conntrack", "appliance/nft/ruleset",
			"appliance/segment", "appliance/sysctl",
		},
		"a data plane does not know who chose it",
	},
	"appliance/nft/conntrack": {[]string{"appliance/balancer", "appliance/segment"},
		"connections are cut whichever rules made them"},
	"appliance/nft/nflog": {[]string{"appliance/balancer", "appliance/connlog", "appliance/nft/ruleset"},
		"connections are seen to begin, whichever data plane serves them"},
	"appliance/nft/direct": {
		[]string{
			"appliance/balancer", "appliance/neighbours", "appliance/nft/conntrack", "appliance/nft/ruleset",
			"appliance/nft/tunnel", "appliance/pathprobe", "appliance/segment",
		},
		"a data plane does not know who chose it, nor the other planes",
	},
	"appliance/nft/tunnel": {[]string{"appliance/nft/ruleset", "appliance/sysctl"},
		"a tunnel leads where it is told, whatever goes through it"},
	"appliance/nft/ruleset": {[]string{"appliance/balancer"}, "rules go into the kernel, whatever they are for"},
	"appliance/ipvs": {[]string{"appliance/balancer", "appliance/sysctl"},
		"a data plane does not know who chose it; its masquerade rules come through an interface"},

	"appliance/status": {
		[]string{"appliance/balancer", "appliance/status/figures"},
		"status is values, and changes nothing",
	},
	"appliance/status/figures": {nil, "how a number is written depends on the number alone"},
	"appliance/status/journal": {
		[]string{"appliance/status", "appliance/status/figures"},
		"a journal keeps events, whoever adds or reads them",
	},
	"appliance/status/history": {
		[]string{"appliance/balancer", "appliance/status", "appliance/status/figures"},
		"samples are made of snapshots, whoever draws them",
	},
	"appliance/status/metrics": {
		[]string{"appliance/balancer", "appliance/status"},
		"metrics are made of snapshots and of what is handed in",
	},
	"appliance/status/terminal": {
		[]string{"appliance/balancer", "appliance/status", "appliance/status/figures"},
		"a terminal shows values, wherever they come from",
	},
	"appliance/status/client": {
		[]string{"appliance/status", "appliance/status/journal"},
		"a client knows the answers, not who gives them",
	},
	"appliance/status/report": {
		[]string{"appliance/balancer", "appliance/status", "appliance/status/history", "appliance/status/journal"},
		"a report is exchanged without knowing what it is for",
	},
	"appliance/status/overview": {
		[]string{
			"appliance/balancer", "appliance/status", "appliance/status/figures", "appliance/status/history",
			"appliance/status/report",
		},
		"what the nodes say together is a pure function of their reports",
	},
	"appliance/status/web": {
		[]string{
			"appliance/status", "appliance/status/figures", "appliance/status/history", "appliance/status/journal",
			"appliance/status/overview", "appliance/status/report", "appliance/keyfile",
		},
		"the page shows, and hands in orders without knowing what they do",
	},
	"appliance/status/statustest": {
		[]string{
			"appliance/balancer", "appliance/status", "appliance/status/history", "appliance/status/journal",
			"appliance/status/report",
		},
		"a made-up group does not know who shows it",
	},

	"appliance/configs":  {[]string{"appliance/balancer", "appliance/mask"}, "a file becomes balancer's value types"},
	"appliance/manifest": {[]string{"appliance/configs"}, "a manifest is a pure function of a config"},

	"appliance/convert": {
		[]string{
			"appliance/convert/draft", "appliance/convert/haproxy", "appliance/convert/keepalived",
			"appliance/convert/kubevip", "appliance/convert/nginx", "appliance/convert/syntax",
		},
		"others' words become text of ours; whether that loads is asked from outside",
	},
	"appliance/convert/syntax": {nil, "words and braces are read without knowing what they mean"},
	"appliance/convert/draft": {
		[]string{"appliance/convert/syntax"},
		"a draft has what files say, whichever program they are for",
	},
	"appliance/convert/haproxy": {
		[]string{"appliance/convert/draft", "appliance/convert/syntax"},
		"a reader knows one foreign format and the draft",
	},
	"appliance/convert/keepalived": {
		[]string{"appliance/convert/draft", "appliance/convert/syntax"},
		"a reader knows one foreign format and the draft",
	},
	"appliance/convert/kubevip": {
		[]string{"appliance/convert/draft", "appliance/convert/syntax"},
		"a reader knows one foreign format and the draft",
	},
	"appliance/convert/nginx": {
		[]string{"appliance/convert/draft", "appliance/convert/syntax"},
		"a reader knows one foreign format and the draft",
	},

	"appliance/script":  {nil, "a program is run without knowing what for"},
	"appliance/track":   {nil, "what is asked is handed in as a function"},
	"appliance/hook":    {nil, "what has happened is told without knowing how it came about"},
	"appliance/confine": {nil, "what the process gives up does not depend on what it is for"},
	"appliance/keyfile": {nil, "who may read a file does not depend on what is in it"},
	"appliance/mask":    {nil, "a secret is known by its shape, wherever it is"},
	"appliance/host":    {[]string{"appliance/mask"}, "what the process asks of its host knows nothing of what it is for"},
	"appliance/cli": {
		[]string{
			"appliance/raft/auth", "appliance/raft/recovery",
			"appliance/balancer", "appliance/configs", "appliance/convert", "appliance/demo", "appliance/dns",
			"appliance/doctor",
			"appliance/endpoints", "appliance/image", "appliance/install", "appliance/manifest",
			"appliance/node", "appliance/node/desired", "appliance/raft", "appliance/status",
			"appliance/status/client", "appliance/status/journal", "appliance/status/terminal",
		},
		"the command line reads words, asks a node and prints; it decides nothing",
	},
	"appliance/node": {
		[]string{
			"appliance/raft/auth", "appliance/raft/feed", "appliance/raft/store",
			"appliance/arp", "appliance/balancer", "appliance/configs", "appliance/confine", "appliance/connlog",
			"appliance/dns", "appliance/hook", "appliance/host",
			"appliance/ipvs", "appliance/mask", "appliance/nft", "appliance/nft/conntrack", "appliance/nft/direct",
			"appliance/nft/ruleset", "appliance/nft/tunnel", "appliance/pathprobe",
			"appliance/raft", "appliance/script", "appliance/status", "appliance/status/web", "appliance/track",
			"appliance/node/announcing", "appliance/node/desired", "appliance/node/lifecycle", "appliance/node/observe",
			"appliance/node/planes", "appliance/node/proving", "appliance/routes",
		},
		"one node wires the rooms; nobody below knows it",
	},
	"appliance/node/desired": {
		[]string{"appliance/balancer", "appliance/configs", "appliance/dns", "appliance/pathprobe", "appliance/raft"},
		"what a node should serve follows from values; it touches no host and no group",
	},
	"appliance/node/planes": {
		[]string{
			"appliance/arp", "appliance/balancer", "appliance/balancer/forward", "appliance/ipvs", "appliance/manifest",
			"appliance/nft", "appliance/nft/direct", "appliance/nft/nflog", "appliance/nft/ruleset",
			"appliance/nft/tunnel", "appliance/pathprobe",
		},
		"the planes know nothing of the group and of the configuration",
	},
	"appliance/node/observe": {
		[]string{
			"appliance/arp", "appliance/balancer", "appliance/configs", "appliance/node/lifecycle", "appliance/status",
			"appliance/status/history", "appliance/status/journal", "appliance/status/metrics", "appliance/status/report",
			"appliance/status/web", "appliance/keyfile", "appliance/mask",
		},
		"an observer records what it is handed and changes nothing",
	},
	"appliance/node/announcing": {
		[]string{"appliance/arp", "appliance/bfd", "appliance/bgp", "appliance/configs", "appliance/keyfile",
			"appliance/routes",
			"appliance/status"},
		"routers are told by what a node says of itself; why it says so is not known here",
	},
	"appliance/node/proving": {
		[]string{
			"appliance/arp", "appliance/balancer", "appliance/neighbours", "appliance/pathprobe", "appliance/proof",
			"appliance/raft", "appliance/status",
		},
		"nodes try each other; what follows from it is the balancer's and the group's business",
	},
	"appliance/endpoints": {[]string{"appliance/configs"}, "what clients are told is a pure function of a config"},
	"appliance/install":   {[]string{"appliance/configs"}, "files are put in their places without knowing what they do"},
	"appliance/image":     {nil, "an image is made of a program's bytes, whatever they do"},
	"appliance/doctor": {
		[]string{
			"appliance/arp", "appliance/configs", "appliance/keyfile", "appliance/nft", "appliance/nft/ruleset",
			"appliance/raft/auth", "appliance/raft/lease",
		},
		"the doctor asks each room whether it could work here, and has none of them do it",
	},
	"appliance/node/lifecycle": {nil, "starting and stopping in order knows nothing of what is started"},
	"appliance": {[]string{"appliance/cli", "appliance/script"},
		"main is the exit code of the command line, or becomes an operator's program"},
	"appliance/cli/manual": {[]string{"appliance/cli"}, "the page is printed from the command line's own definitions"},
	"appliance/lab":        {nil, "machines made of namespaces know nothing of what runs on them"},
	"appliance/demo": {
		[]string{"appliance/lab", "appliance/status", "appliance/status/client"},
		"the demo looks at the appliance from outside",
	},
}

// doors are the packages that hide a technology: only they may import it.
var doors = map[string][]string{
	"github.com/hashicorp/raft": {
		"appliance/raft", "appliance/raft/recovery", "appliance/raft/settings", "appliance/raft/store",
		"appliance/raft/transport",
	},
	"github.com/jwhited/corebgp": {"appliance/bgp"},
	"github.com/mdlayher/arp":    {"appliance/arp", "appliance/lab"},
	"github.com/mdlayher/ndp":    {"appliance/arp", "appliance/lab"},
	"github.com/cloudflare/ipvs": {"appliance/ipvs"},
	"github.com/google/nftables": {
		"appliance/nft", "appliance/nft/direct", "appliance/nft/nflog", "appliance/nft/ruleset", "appliance/nft/tunnel",
		"appliance/lab",
	},
	"github.com/urfave/cli/v2":       {"appliance/cli"},
	"github.com/prometheus":          {"appliance/status/metrics"},
	"k8s.io":                         nil, // a quarter of the binary; only tests may
	"github.com/vishvananda/netns":   {"appliance/lab"},
	"github.com/pires/go-proxyproto": {"appliance/balancer/forward"},
}

func TestArrows(t *testing.T) {
	if testing.Short() {
		t.Skip("asks the go command for every import")
	}
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	rooms := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		// integration looks at everything from outside.
		if strings.HasPrefix(pkg.ImportPath, "appliance/integration") {
			continue
		}
		room, known := arrows[pkg.ImportPath]
		if !known {
			t.Errorf("%s is a new room: give it its arrows here, and its place in the docs", pkg.ImportPath)
		}
		rooms++
		for _, imp := range pkg.Imports {
			if strings.HasPrefix(imp, "appliance") && !slices.Contains(room.may, imp) {
				t.Errorf("%s imports %s: %s", pkg.ImportPath, imp, room.why)
			}
			for technology, may := range doors {
				if (imp == technology || strings.HasPrefix(imp, technology+"/")) && !slices.Contains(may, pkg.ImportPath) {
					t.Errorf("%s imports %s: the door to it is %s", pkg.ImportPath, imp, strings.Join(may, ", "))
				}
			}
		}
	}
	if rooms < len(arrows) {
		t.Errorf("looked at %d rooms of %d: a room is gone, so its arrows here are dead", rooms, len(arrows))
	}
}
