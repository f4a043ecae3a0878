package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A cell is one value as it was written, with the place where it stands.
type cell struct {
	value  string
	origin Origin
}

// sheet is everything that was said, flat: loadBalancers[0].check.rise → 2.
// All sources end in one sheet, so that every value is read in one way.
type sheet struct {
	cells map[string]cell
	// lists has the length of each list, mappings the place of each element.
	lists map[string]int
	heads map[string]Origin
}

func newSheet() *sheet {
	return &sheet{cells: map[string]cell{}, lists: map[string]int{}, heads: map[string]Origin{}}
}

// drop forgets key and everything below it.
func (s *sheet) drop(key string) {
	below := func(k string) bool {
		rest, ok := strings.CutPrefix(k, key)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	}
	for k := range s.cells {
		if below(k) {
			delete(s.cells, k)
		}
	}
	for k := range s.lists {
		if below(k) {
			delete(s.lists, k)
		}
	}
	for k := range s.heads {
		if below(k) {
			delete(s.heads, k)
		}
	}
}

// has reports whether key or anything below it was set.
func (s *sheet) has(key string) bool {
	if s.lists[key] > 0 {
		return true
	}
	for k := range s.cells {
		if k == key || strings.HasPrefix(k, key+".") || strings.HasPrefix(k, key+"[") {
			return true
		}
	}
	return false
}

// place is where key stands: its own line, or that of the nearest thing
// around it that was written.
func (s *sheet) place(key string) Origin {
	for key != "" {
		if c, ok := s.cells[key]; ok {
			return c.origin
		}
		if o, ok := s.heads[key]; ok {
			return o
		}
		cut := strings.LastIndexAny(key, ".[")
		if cut < 0 {
			break
		}
		key = key[:cut]
	}
	return Origin{}
}

// maxFile is far above any real file and keeps a wrong path, such as that of
// a disk image, from filling the memory.
const maxFile = 1 << 20

// maxList is above any real list, and keeps what compares each with each
// from taking minutes.
const maxList = 1000

// reader of one YAML file into a sheet.
type parser struct {
	*report
	*sheet
	file string
	// respelled is set once a key was found in other capitals.
	respelled bool
}

// parseFile reads the YAML in data into a sheet, and reports whether it could
// be read at all. What is wrong goes to rep.
func parseFile(name string, data []byte, rep *report) (*sheet, bool) {
	p := &parser{report: rep, sheet: newSheet(), file: name}
	if len(data) > maxFile {
		p.problem(Origin{File: name}, "", "is larger than %d bytes, which no configuration is; check the path", maxFile)
		return p.sheet, false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return p.sheet, true // an empty file says nothing, which is allowed
	} else if err != nil {
		p.syntax(err)
		return p.sheet, false
	}
	if err := dec.Decode(&more); err == nil {
		p.problem(p.at(&more), "", "begins a second document; write one document, without ---")
		return p.sheet, false
	} else if !errors.Is(err, io.EOF) {
		p.syntax(err)
		return p.sheet, false
	}
	if root := doc.Content[0]; root.Kind != yaml.ScalarNode || root.ShortTag() != "!!null" {
		p.mapping(root, "")
	}
	return p.sheet, true
}

func (p *parser) at(n *yaml.Node) Origin { return Origin{File: p.file, Line: n.Line} }

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

func (p *parser) syntax(err error) {
	o, text := Origin{File: p.file}, err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		o.Line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	p.problem(o, "", "is not YAML: %s; compare with `appliance config sample`", text)
}

// mapping reads the keys below prefix, which is empty or ends in a dot.
func (p *parser) mapping(n *yaml.Node, prefix string) {
	if n.Kind != yaml.MappingNode {
		remedy := "compare with `appliance config sample`"
		if prefix != "" {
			remedy = "write " + choices(suffixed(children(pattern(prefix)), ": …")) + " below it"
		}
		p.problem(p.at(n), strings.TrimSuffix(prefix, "."), "must be a mapping, not %s; %s", kind(n), remedy)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key, ok := p.key(k, prefix)
		if !ok {
			continue
		}
		if line, dup := seen[key]; dup {
			p.problem(p.at(k), prefix+key, "is already set in line %d; keep one of the two", line)
			continue
		}
		seen[key] = k.Line
		p.heads[prefix+key] = p.at(k)
		p.value(v, prefix+key)
	}
}

// key finds the name under which the key k is known, and reports what is not.
func (p *parser) key(k *yaml.Node, prefix string) (string, bool) {
	if k.Kind != yaml.ScalarNode {
		p.problem(p.at(k), strings.TrimSuffix(prefix, "."), "has %s as a key; write a name", kind(k))
		return "", false
	}
	known := children(pattern(prefix))
	if slices.Contains(known, k.Value) {
		return k.Value, true
	}
	if why, ok := retiredKey(pattern(prefix), k.Value); ok {
		p.warn(p.at(k), prefix+k.Value, "%s", why)
		return "", false
	}
	// kube-vip read keys in any capitals, and wrote them with a first one.
	for _, name := range known {
		if !strings.EqualFold(name, k.Value) && !renamedKey(name, k.Value) {
			continue
		}
		if !p.respelled {
			p.respelled = true
			p.warn(p.at(k), prefix+k.Value, "is read as %s; write keys as the reference file does", name)
		}
		return name, true
	}
	remedy := "remove it; known here: " + strings.Join(known, ", ")
	if near := nearest(k.Value, known); near != "" {
		remedy = fmt.Sprintf("did you mean %s?", near)
	} else if full, ok := elsewhere(k.Value); ok {
		remedy = fmt.Sprintf("it belongs elsewhere: %s", full)
	}
	p.problem(p.at(k), prefix+printable(k.Value), "is not a known key; %s", remedy)
	return "", false
}

func (p *parser) value(v *yaml.Node, key string) {
	if v.Kind == yaml.AliasNode {
		p.problem(p.at(v), key, "is a YAML alias; write the value out, so that its line is its own")
		return
	}
	if v.Kind == yaml.ScalarNode && v.ShortTag() == "!!null" {
		return // "key:" with nothing behind it is the default
	}
	pat := pattern(key)
	if len(children(pat+"[].")) > 0 || isList(pat) {
		p.list(v, key)
		return
	}
	if len(children(pat+".")) > 0 {
		p.mapping(v, key+".")
		return
	}
	p.scalar(v, key)
}

func (p *parser) list(v *yaml.Node, key string) {
	if set, _ := setting(key + "[]"); set.Type == Map && v.Kind == yaml.MappingNode {
		p.pairs(v, key)
		return
	}
	if v.Kind != yaml.SequenceNode {
		p.problem(p.at(v), key, "must be a list, not %s; write one line with - for each", kind(v))
		return
	}
	if len(v.Content) > maxList {
		p.problem(p.at(v), key, "has %d entries; write %d at most", len(v.Content), maxList)
		return
	}
	p.lists[key] = len(v.Content)
	for i, e := range v.Content {
		at := fmt.Sprintf("%s[%d]", key, i)
		p.heads[at] = p.at(e)
		_, plain := setting(at)
		_, short := setting(at + ".address")
		switch {
		case plain:
			p.scalar(e, at)
		case short && e.Kind == yaml.ScalarNode:
			p.scalar(e, at+".address") // - 192.0.2.1 is short for - address: 192.0.2.1
		default:
			p.mapping(e, at+".")
		}
	}
}

// pairs reads a mapping whose names are the operator's own, as a list of
// "name: value".
func (p *parser) pairs(v *yaml.Node, key string) {
	if len(v.Content) > 2*maxList {
		p.problem(p.at(v), key, "has %d entries; write %d at most", len(v.Content)/2, maxList)
		return
	}
	n := 0
	for i := 0; i+1 < len(v.Content); i += 2 {
		name, value := v.Content[i], v.Content[i+1]
		if name.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode || value.ShortTag() == "!!null" {
			p.problem(p.at(name), key, "must be lines of name: value, and one is %s: %s", kind(name), kind(value))
			continue
		}
		p.cells[fmt.Sprintf("%s[%d]", key, n)] = cell{name.Value + ": " + value.Value, p.at(name)}
		n++
	}
	p.lists[key] = n
}

func (p *parser) scalar(v *yaml.Node, key string) {
	if v.Kind != yaml.ScalarNode {
		p.problem(p.at(v), key, "must be one value, not %s", kind(v))
		return
	}
	switch v.ShortTag() {
	case "!!str", "!!int", "!!bool", "!!float", "!!timestamp":
		p.cells[key] = cell{value: v.Value, origin: p.at(v)}
	case "!!null":
		p.problem(p.at(v), key, "is empty; write a value or remove the line")
	default:
		p.problem(p.at(v), key, "has the YAML tag %s; write the plain value", printable(v.Tag))
	}
}

func isList(pat string) bool { _, ok := setting(pat + "[]"); return ok }

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	if n.ShortTag() == "!!null" {
		return "nothing"
	}
	return strconv.Quote(n.Value)
}
