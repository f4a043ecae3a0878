package convert

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"appliance/convert/draft"
	"appliance/convert/haproxy"
	"appliance/convert/keepalived"
	"appliance/convert/kubevip"
	"appliance/convert/nginx"
	"appliance/convert/syntax"
)

// A File is one configuration that was read. An empty Kind is found out.
type File struct {
	Name   string
	Format Format
	Data   []byte
}

// Addresses are what the files may not say.
type Addresses struct {
	// VIPs and Peers take the place of those that the files name.
	VIPs, Peers []netip.Addr
}

// A Output is our configuration with what is to be said about it.
type Output struct {
	// YAML has a comment for every statement that was not carried over.
	YAML []byte
	// Statements were read; of these, Decide need somebody who decides, and
	// Moot have no meaning here. The rest were carried over.
	Statements, Decide, Moot int
}

// maxFile is what our own loader reads.
const maxFile = 1 << 20

// Convert makes one configuration of files, which are those of one machine. It
// reads nothing else and runs nothing, whatever the files say.
func Convert(files []File, o Addresses) (Output, error) {
	d := draft.New()
	for _, f := range files {
		if err := read(d, f); err != nil {
			return Output{}, err
		}
	}
	p, err := newPlan(d, o)
	if err != nil {
		return Output{}, err
	}
	text := write(d, p, files)
	if len(text) > maxFile {
		return Output{}, fmt.Errorf("the result would be larger than %d bytes, which is more than can be loaded; convert fewer files at once", maxFile)
	}
	res := Output{YAML: text, Statements: d.Statements}
	decide, moot := map[syntax.Place]bool{}, map[syntax.Place]bool{}
	for _, n := range d.Notes {
		if n.Moot {
			moot[n.Place] = true
		} else {
			decide[n.Place] = true
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

func read(d *draft.Draft, f File) error {
	if len(f.Data) > maxFile {
		return fmt.Errorf("%s: is larger than %d bytes, which no configuration is; check the path", syntax.Printable(f.Name), maxFile)
	}
	f.Data = bytes.TrimPrefix(f.Data, []byte("\ufeff")) // as some editors begin a file
	kind := f.Format
	if kind == "" {
		var err error
		if kind, err = Detect(f.Name, f.Data); err != nil {
			return err
		}
	}
	var (
		g     syntax.Grammar
		build func([]syntax.Statement) error
	)
	switch kind {
	case HAProxy:
		g, build = haproxy.Grammar, func(l []syntax.Statement) error { return haproxy.Read(d, l) }
	case Nginx:
		g, build = nginx.Grammar, func(l []syntax.Statement) error { return nginx.Read(d, l) }
	case Keepalived:
		g, build = keepalived.Grammar, func(l []syntax.Statement) error { return keepalived.Read(d, l) }
	case KubeVIP:
		return kubevip.Read(d, f.Name, f.Data)
	default:
		return fmt.Errorf("%s: %q is no kind of configuration; write %s", syntax.Printable(f.Name), kind, kinds())
	}
	list, err := g.Parse(f.Name, f.Data)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("%s: has nothing in it; check the path", syntax.Printable(f.Name))
	}
	if d.Tally(list); d.Statements > draft.MaxStatements {
		return fmt.Errorf("%s: has more than %d statements, which no configuration of one machine has; check the path", syntax.Printable(f.Name), draft.MaxStatements)
	}
	return build(list)
}

// errNothing is what remains if nothing can be carried over.
var errNothing = errors.New("there is nothing in it that can be carried over")
