package convert

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"appliance/convert/draft"
	"appliance/convert/haproxy"
	"appliance/convert/keepalived"
	"appliance/convert/kubevip"
	"appliance/convert/nginx"
	"appliance/convert/syntax"
)

// A File is one configuration file. If its format is empty, it is detected.
type File struct {
	Name   string
	Format Format
	Data   []byte
}

// Addresses are what the files may not say; they replace what the files say.
type Addresses struct {
	VIPs, Peers []netip.Addr
}

// An Output is our configuration and how much of the files is in it.
type Output struct {
	// YAML has a comment for every statement that was not carried over.
	YAML []byte
	// Statements is how many were read. Of these, Decide need a decision of somebody, and Moot have no meaning here. The
	// rest were carried over.
	Statements, Decide, Moot int
	// LoadBalancers is how many the files have, and Refused how many of these were not carried over.
	LoadBalancers, Refused int
	// Alone means that the files have virtual addresses and no load balancer, and so has YAML.
	Alone bool
}

// maxFile is how many bytes our loader reads.
const maxFile = 1 << 20

// Convert makes one configuration of files, which are those of one machine. It reads nothing else and runs nothing,
// whatever the files say.
func Convert(files []File, given Addresses) (Output, error) {
	d := draft.New()
	if err := readAll(d, files); err != nil {
		return Output{}, err
	}
	p, err := newPlan(d, given)
	if err != nil {
		return Output{}, err
	}
	text := write(p, files)
	if len(text) > maxFile {
		return Output{}, fmt.Errorf("the result would be larger than %d bytes, which is more than can be loaded; "+
			"convert fewer files at once", maxFile)
	}
	decide, moot := map[syntax.Place]bool{}, map[syntax.Place]bool{}
	for _, n := range d.Notes {
		if n.Moot {
			moot[n.Place] = true
		} else {
			decide[n.Place] = true
		}
	}
	out := Output{YAML: text, Statements: d.Statements, Decide: len(decide), LoadBalancers: len(d.LoadBalancers),
		Refused: p.refused(), Alone: p.Alone}
	for at := range moot {
		if !decide[at] {
			out.Moot++
		}
	}
	return out, nil
}

// A program is a format whose files are read as one.
type program struct {
	format  Format
	grammar syntax.Grammar
	read    func(*draft.Draft, []syntax.Statement) error
}

// parse cuts a file into statements. keepalived's own definitions are replaced before.
func parse(p program, f File) ([]syntax.Statement, error) {
	if p.format != Keepalived {
		return p.grammar.Parse(f.Name, f.Data)
	}
	text, lines, err := keepalived.Unfold(f.Name, f.Data)
	if err != nil {
		return nil, err
	}
	list, err := p.grammar.Parse(f.Name, text)
	if err != nil { // the lines are those of the text
		for i, n := range lines {
			if n != i+1 {
				return nil, fmt.Errorf("%w (lines are counted with what definitions stand for)", err)
			}
		}
		return nil, err
	}
	renumber(list, lines)
	return list, nil
}

// renumber gives statements the lines of the file that they are from.
func renumber(list []syntax.Statement, lines []int) {
	for i := range list {
		if n := list[i].Line; n > 0 && n <= len(lines) {
			list[i].Line = lines[n-1]
		}
		renumber(list[i].Body, lines)
	}
}

var programs = []program{
	{HAProxy, haproxy.Grammar, haproxy.Read},
	{Nginx, nginx.Grammar, nginx.Read},
	{Keepalived, keepalived.Grammar, keepalived.Read},
}

// readAll adds files to d. Those of one program are one configuration, as they are for that program.
func readAll(d *draft.Draft, files []File) error {
	parsed := map[Format][]parsedFile{}
	for _, f := range files {
		name := syntax.Printable(f.Name)
		if len(f.Data) > maxFile {
			return fmt.Errorf("%s: is larger than %d bytes, which no configuration is; check the path", name, maxFile)
		}
		f.Data = bytes.TrimPrefix(f.Data, []byte("\ufeff")) // some editors begin a file with it
		if f.Format == "" {
			var err error
			if f.Format, err = Detect(f.Name, f.Data); err != nil {
				if f.Format = includedBy(f.Name, files); f.Format == "" {
					return err
				}
			}
		}
		if f.Format == KubeVIP {
			if err := kubevip.Read(d, f.Name, f.Data); err != nil {
				return err
			}
			continue
		}
		i := slices.IndexFunc(programs, func(p program) bool { return p.format == f.Format })
		if i < 0 {
			return fmt.Errorf("%s: %q is no kind of configuration; write %s", name, f.Format, formatNames())
		}
		list, err := parse(programs[i], f)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("%s: has nothing in it; check the path", name)
		}
		if d.Count(list); d.Statements > draft.MaxStatements {
			return fmt.Errorf("%s: has more than %d statements, which no configuration of one machine has; check the path",
				name, draft.MaxStatements)
		}
		parsed[f.Format] = append(parsed[f.Format], parsedFile{f.Name, list})
	}
	for _, p := range programs {
		list, err := asOne(p.format, parsed[p.format])
		if err != nil {
			return err
		}
		if len(list) == 0 {
			continue
		}
		if err := p.read(d, list); err != nil {
			return err
		}
	}
	return nil
}
