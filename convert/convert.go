package convert

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// A Kind is a program whose configuration can be read.
type Kind string

// The kinds. Detect finds out which one a file is of.
const (
	HAProxy    Kind = "haproxy"
	Nginx      Kind = "nginx"
	Keepalived Kind = "keepalived"
	KubeVIP    Kind = "kube-vip"
)

// Kinds lists them.
func Kinds() []Kind { return []Kind{HAProxy, Nginx, Keepalived, KubeVIP} }

// A File is one configuration that was read. An empty Kind is found out.
type File struct {
	Name string
	Kind Kind
	Data []byte
}

// Options are what the files may not say.
type Options struct {
	// VIPs and Peers take the place of those that the files name.
	VIPs, Peers []netip.Addr
}

// A Result is our configuration with what is to be said about it.
type Result struct {
	// YAML has a comment for every statement that was not carried over.
	YAML []byte
	// Statements were read; of these, Decide need somebody who decides, and
	// Moot have no meaning here. The rest were carried over.
	Statements, Decide, Moot int
}

// maxFile is what our own loader reads.
const maxFile = 1 << 20

// maxStatements is above any real configuration, and keeps what compares each
// with each from taking minutes.
const maxStatements = 20_000

// Convert makes one configuration of files, which are those of one machine. It
// reads nothing else and runs nothing, whatever the files say.
func Convert(files []File, o Options) (Result, error) {
	d := newDraft()
	for _, f := range files {
		if err := d.read(f); err != nil {
			return Result{}, err
		}
	}
	p, err := d.settle(o)
	if err != nil {
		return Result{}, err
	}
	text := write(d, p, files)
	if len(text) > maxFile {
		return Result{}, fmt.Errorf("the result would be larger than %d bytes, which is more than can be loaded; convert fewer files at once", maxFile)
	}
	res := Result{YAML: text, Statements: d.lines}
	decide, moot := map[place]bool{}, map[place]bool{}
	for _, n := range d.notes {
		if n.moot {
			moot[n.place] = true
		} else {
			decide[n.place] = true
		}
	}
	for at := range moot {
		if !decide[at] {
			res.Moot++
		}
	}
	res.Decide = len(decide)
	return res, nil
}

func (d *draft) read(f File) error {
	if len(f.Data) > maxFile {
		return fmt.Errorf("%s: is larger than %d bytes, which no configuration is; check the path", printable(f.Name), maxFile)
	}
	f.Data = bytes.TrimPrefix(f.Data, []byte("\ufeff")) // as some editors begin a file
	kind := f.Kind
	if kind == "" {
		var err error
		if kind, err = Detect(f.Name, f.Data); err != nil {
			return err
		}
	}
	var (
		g     grammar
		build func([]statement) error
	)
	switch kind {
	case HAProxy:
		g, build = haproxyGrammar, d.haproxy
	case Nginx:
		g, build = nginxGrammar, d.nginx
	case Keepalived:
		g, build = keepalivedGrammar, d.keepalived
	case KubeVIP:
		return d.kubeVIP(f.Name, f.Data)
	default:
		return fmt.Errorf("%s: %q is no kind of configuration; write %s", printable(f.Name), kind, kinds())
	}
	list, err := g.parse(f.Name, f.Data)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("%s: has nothing in it; check the path", printable(f.Name))
	}
	if d.tally(list); d.lines > maxStatements {
		return fmt.Errorf("%s: has more than %d statements, which no configuration of one machine has; check the path", printable(f.Name), maxStatements)
	}
	return build(list)
}

func kinds() string {
	var words []string
	for _, k := range Kinds() {
		words = append(words, string(k))
	}
	return strings.Join(words, ", ")
}

// signs are lines that only one kind has.
var signs = []struct {
	kind Kind
	line *regexp.Regexp
}{
	{Keepalived, regexp.MustCompile(`(?m)^[ \t]*(vrrp_instance|vrrp_script|vrrp_sync_group|virtual_server|virtual_server_group|global_defs)\b[^;]*$`)},
	{Nginx, regexp.MustCompile(`(?m)^[ \t]*(stream|upstream[ \t]+\S+|server|events)[ \t]*(\{|$)`)},
	{KubeVIP, regexp.MustCompile(`(?mi)^(vip|localPeer|remotePeers|loadBalancers|gratuitousARP|startAsLeader|singleNode)[ \t]*:`)},
	{HAProxy, regexp.MustCompile(`(?m)^[ \t]*(global|defaults|frontend|backend|listen)\b[^;{:]*(:[^;{]*)?$`)},
}

// Detect finds out which program data is for.
func Detect(name string, data []byte) (Kind, error) {
	var found []Kind
	for _, s := range signs {
		if s.line.Match(data) {
			found = append(found, s.kind)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return "", fmt.Errorf("%s: is none of %s as far as one can see; if it is, say which with --from", printable(name), kinds())
	case slices.Contains(found, Keepalived) && slices.Contains(found, HAProxy) && len(found) == 2:
		return "", fmt.Errorf("%s: looks like keepalived and haproxy in one; put them into two files", printable(name))
	}
	return "", fmt.Errorf("%s: looks like %s; say which with --from", printable(name), fmt.Sprint(found))
}

// errNothing is what remains if nothing can be carried over.
var errNothing = errors.New("there is nothing in it that can be carried over")
