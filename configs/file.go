package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A rawValue is one value as it was written, with its place.
type rawValue struct {
	value  string
	origin Origin
}

// rawConfig is everything that was set, flat: loadBalancers[0].check.rise → 2. All
// sources end in one rawConfig, so that every value is read in one way.
type rawConfig struct {
	values map[string]rawValue
	// lists has the length of each list, origins the place of each list element
	// and of each key in the file.
	lists   map[string]int
	origins map[string]Origin
}

func newRawConfig() *rawConfig {
	return &rawConfig{values: map[string]rawValue{}, lists: map[string]int{}, origins: map[string]Origin{}}
}

// isAtOrBelow reports whether key is parent or anything below it.
func isAtOrBelow(key, parent string) bool {
	rest, ok := strings.CutPrefix(key, parent)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// remove forgets key and everything below it.
func (r *rawConfig) remove(key string) {
	maps.DeleteFunc(r.values, func(k string, _ rawValue) bool { return isAtOrBelow(k, key) })
	maps.DeleteFunc(r.lists, func(k string, _ int) bool { return isAtOrBelow(k, key) })
	maps.DeleteFunc(r.origins, func(k string, _ Origin) bool { return isAtOrBelow(k, key) })
}

// hasEmpty reports whether key is a list that was written and has nothing in it.
func (r *rawConfig) hasEmpty(key string) bool {
	n, listed := r.lists[key]
	return listed && n == 0
}

// isSet reports whether key or anything below it was set.
func (r *rawConfig) isSet(key string) bool {
	if _, ok := r.values[key]; ok || r.lists[key] > 0 {
		return true
	}
	for k := range r.values {
		if isAtOrBelow(k, key) {
			return true
		}
	}
	return false
}

// isWritten is isSet for keys of the file alone; it looks at a few values where key is not there.
func (r *rawConfig) isWritten(key string) bool {
	_, ok := r.origins[key]
	return ok && r.isSet(key)
}

// originOf is where key stands: its own line, or that of the nearest thing around
// it that was written.
func (r *rawConfig) originOf(key string) Origin {
	for key != "" {
		if v, ok := r.values[key]; ok {
			return v.origin
		}
		if o, ok := r.origins[key]; ok {
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

// maxFile is far above the bytes of any real file. It keeps a wrong path, such as
// that of a disk image, from filling the memory.
const maxFile = 1 << 20

// maxList is above the length of any real list. It keeps comparisons of each
// element with each other from taking minutes.
const maxList = 1000

// A parser reads one YAML file into a rawConfig.
type parser struct {
	*report
	*rawConfig
	file string
	data []byte
	// warnedOfCapitals is set once a key was found in other capitals.
	warnedOfCapitals bool
}

// parseFile reads the YAML in data, and reports whether it could be read at all.
// Problems go to rep.
func parseFile(name string, data []byte, rep *report) (*rawConfig, bool) {
	p := &parser{report: rep, rawConfig: newRawConfig(), file: name, data: data}
	if len(data) > maxFile {
		p.problem(Origin{File: name}, "", "is larger than %d bytes, which no configuration is; check the path", maxFile)
		return p.rawConfig, false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return p.rawConfig, true // an empty file sets nothing, which is allowed
	} else if err != nil {
		p.syntax(err)
		return p.rawConfig, false
	}
	if err := dec.Decode(&more); err == nil {
		p.problem(p.at(&more), "", "begins a second document; write one document, without ---")
		return p.rawConfig, false
	} else if !errors.Is(err, io.EOF) {
		p.syntax(err)
		return p.rawConfig, false
	}
	if root := doc.Content[0]; root.Kind != yaml.ScalarNode || root.ShortTag() != "!!null" {
		p.mapping(root, "")
	}
	return p.rawConfig, true
}

func (p *parser) at(n *yaml.Node) Origin { return Origin{File: p.file, Line: n.Line} }

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(?s:(.*))$`)

func (p *parser) syntax(err error) {
	o, text := Origin{File: p.file}, err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		o.Line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	// The decoder names the line or the one before it, and the tab a character that cannot start a token.
	lines := bytes.Split(p.data, []byte("\n"))
	for n := max(o.Line, 1); n <= min(o.Line+1, len(lines)); n++ {
		line := lines[n-1]
		if indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]; bytes.ContainsRune(indent, '\t') {
			p.problem(Origin{File: p.file, Line: n}, "", "is indented with a TAB, which YAML does not allow; write spaces")
			return
		}
	}
	p.problem(o, "", "is not YAML: %s; compare with `appliance config sample`", text)
}

// mapping reads the keys below prefix, which is empty or ends in a dot.
func (p *parser) mapping(n *yaml.Node, prefix string) {
	if n.Kind != yaml.MappingNode {
		remedy := "compare with `appliance config sample`"
		if prefix != "" {
			var keys []string
			for _, name := range children(pattern(prefix)) {
				keys = append(keys, name+": …")
			}
			remedy = "write " + orList(keys) + " below it"
		}
		p.problem(p.at(n), strings.TrimSuffix(prefix, "."), "must be a mapping, not %s; %s", describe(n), remedy)
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
		p.origins[prefix+key] = p.at(k)
		p.value(v, prefix+key)
	}
}

// key finds the known name of the key k, and reports an unknown one.
func (p *parser) key(k *yaml.Node, prefix string) (string, bool) {
	if k.Kind != yaml.ScalarNode {
		p.problem(p.at(k), strings.TrimSuffix(prefix, "."), "has %s as a key; write a name", describe(k))
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
	// kube-vip read keys in any capitals, and wrote them with a capital first letter.
	for _, name := range known {
		if !strings.EqualFold(name, k.Value) && !renamedKey(name, k.Value) {
			continue
		}
		if !p.warnedOfCapitals {
			p.warnedOfCapitals = true
			p.warn(p.at(k), prefix+k.Value, "is read as %s; write keys as the reference file does", name)
		}
		return name, true
	}
	remedy := "remove it; known here: " + strings.Join(known, ", ")
	if near := nearest(k.Value, known); near != "" {
		remedy = fmt.Sprintf("did you mean %s?", near)
	} else if full, ok := keyEndingIn(k.Value); ok {
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
		return // "key:" without a value means the default
	}
	pat := pattern(key)
	if len(children(pat+"[].")) > 0 || isList(pat) {
		p.list(v, key)
		return
	}
	if len(children(pat+".")) > 0 {
		// announce: bgp is short for announce: {by: bgp}, and bfd: true for bfd: {on: true}.
		for _, short := range []string{".by", ".on"} {
			if _, ok := setting(key + short); ok && v.Kind == yaml.ScalarNode {
				p.scalar(v, key+short)
				return
			}
		}
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
		p.problem(p.at(v), key, "must be a list, not %s; write one line with - for each", describe(v))
		return
	}
	if len(v.Content) > maxList {
		p.problem(p.at(v), key, "has %d entries; write %d at most", len(v.Content), maxList)
		return
	}
	p.lists[key] = len(v.Content)
	for i, e := range v.Content {
		at := fmt.Sprintf("%s[%d]", key, i)
		p.origins[at] = p.at(e)
		_, plain := setting(at)
		_, short := setting(at + ".address")
		switch {
		case plain && !(short && e.Kind == yaml.MappingNode):
			p.scalar(e, at)
		case short && e.Kind == yaml.ScalarNode:
			p.scalar(e, at+".address") // - 192.0.2.1 is short for - address: 192.0.2.1
		default:
			p.mapping(e, at+".")
		}
	}
}

// pairs reads a mapping whose names the operator chooses, as a list of
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
			p.problem(p.at(name), key, "must be lines of name: value, and one is %s: %s", describe(name), describe(value))
			continue
		}
		p.values[fmt.Sprintf("%s[%d]", key, n)] = rawValue{name.Value + ": " + value.Value, p.at(name)}
		n++
	}
	p.lists[key] = n
}

func (p *parser) scalar(v *yaml.Node, key string) {
	if v.Kind != yaml.ScalarNode {
		p.problem(p.at(v), key, "must be one value, not %s", describe(v))
		return
	}
	switch v.ShortTag() {
	case "!!str", "!!int", "!!bool", "!!float", "!!timestamp":
		p.values[key] = rawValue{value: v.Value, origin: p.at(v)}
	case "!!null":
		p.problem(p.at(v), key, "is empty; write a value or remove the line")
	default:
		p.problem(p.at(v), key, "has the YAML tag %s; write the plain value", printable(v.Tag))
	}
}

func isList(pat string) bool { _, ok := setting(pat + "[]"); return ok }

func describe(n *yaml.Node) string {
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

// retired are the keys of kube-vip 0.1 that mean nothing here, with the reason.
// They give a warning, because kube-vip's files are accepted as they are.
var retired = map[string]string{
	"gratuitousarp":                        "is not needed any more: the holder always announces itself; remove the line",
	"vipcidr":                              retiredCIDR,
	"address":                              "has no effect: names are not looked up; write the address as vip",
	"enableloadbalancer":                   "is not needed any more: load balancing is always on; remove the line",
	"enableleaderelection":                 retiredElection,
	"leaseduration":                        retiredTiming,
	"renewdeadline":                        retiredTiming,
	"retryperiod":                          retiredTiming,
	"enablebgp":                            retiredBGP,
	"bgpconfig":                            retiredBGP,
	"bgppeerconfig":                        retiredBGP,
	"enablepacket":                         retiredCloud,
	"packetapikey":                         retiredCloud + ", it is a secret",
	"packetproject":                        retiredCloud,
	"loadbalancers[].backends[].parsedurl": "has no effect: url says it; remove the line",
}

const (
	retiredCIDR     = "is not needed any more: a virtual address is bound as a host address; remove the line"
	retiredElection = "has no effect: the peers elect among themselves, without Kubernetes; remove the line"
	retiredTiming   = "has no effect: group.heartbeat is the time after which peers elect; remove the line"
	retiredBGP      = "has no effect: the virtual address is answered for on the link, not routed; remove the line"
	retiredCloud    = "has no effect: no cloud's interface is called; remove the line"
)

func retiredKey(prefix, name string) (string, bool) {
	why, ok := retired[strings.ToLower(prefix+name)]
	return why, ok
}

// renamedKey reports whether kube-vip wrote the key name as other: the files that
// it dumps call a backend's url rawURL.
func renamedKey(name, other string) bool {
	return name == "url" && strings.EqualFold(other, "rawURL")
}
