package configs

import (
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

//go:embed reference.yaml
var reference []byte

// Sample is the commented reference file, with every key and its default.
func Sample() []byte { return append([]byte(nil), reference...) }

// A Source is what was set beside the file. A nil function sets nothing.
type Source struct {
	// Flag returns a flag's value if it was given on the command line. The values
	// of a list are joined by commas.
	Flag func(name string) (string, bool)
	// Env is os.LookupEnv.
	Env func(name string) (string, bool)
	// FileExists looks for the group key in its default place; nil means os.Stat.
	FileExists func(path string) bool
}

// look finds what flag or environment say about a setting. An empty variable sets
// nothing, so that a manifest can leave one blank.
func (s Source) look(set Setting) (rawValue, bool) {
	if set.Flag == "" {
		return rawValue{}, false
	}
	if s.Flag != nil {
		if v, ok := s.Flag(set.Flag); ok {
			return rawValue{v, Origin{Flag: set.Flag}}, true
		}
	}
	if s.Env != nil {
		if v, ok := s.Env(set.Env()); ok && v != "" {
			return rawValue{v, Origin{Env: set.Env()}}, true
		}
	}
	return rawValue{}, false
}

// Args is everything that flags and environment set, as arguments: a manifest passes
// them to the process that it describes.
func (s Source) Args() []string {
	var args []string
	for _, set := range settings {
		if c, ok := s.look(set); ok {
			args = append(args, "--"+set.Flag+"="+c.value)
		}
	}
	return args
}

func (s Source) exists(path string) bool {
	if s.FileExists != nil {
		return s.FileExists(path)
	}
	_, err := os.Stat(path)
	return err == nil
}

// Load reads the file at path, lays environment and flags over it, and validates the
// whole. If path is empty, src may name the file, or there is none. The error holds
// every problem found, each with its place and what to write instead.
func Load(path string, src Source) (*Config, error) {
	if path == "" {
		c, _ := src.look(settings[0])
		path = c.value
	}
	if path == "" {
		return Parse("", nil, src)
	}
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data, src)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		reason := err
		if e, ok := err.(*fs.PathError); ok {
			reason = e.Err
		}
		return nil, fmt.Errorf("%s: %w; write one with `appliance config sample > %s`, or give --vip and --peers",
			path, reason, path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w; give the path of a YAML file", err)
	}
	return data, nil
}

// Parse is Load for the content of a file; name is the file in messages.
func Parse(name string, data []byte, src Source) (*Config, error) {
	rep := &report{}
	raw, ok := parseFile(name, data, rep)
	if !ok {
		return nil, rep.err()
	}
	b := &builder{
		report: rep, rawConfig: raw, file: name, src: src, cfg: &Config{}, unknownKeys: len(rep.problems) > 0,
	}
	overlay(raw, src, rep)
	b.build()
	if err := rep.err(); err != nil {
		return nil, err
	}
	b.cfg.Warnings = rep.warnings
	return b.cfg, nil
}

// overlay lays what flags and environment set over the file.
func overlay(raw *rawConfig, src Source, rep *report) {
	for _, set := range settings {
		c, ok := src.look(set)
		if !ok || set.Key == "" {
			continue
		}
		if set.Type == List && strings.Trim(c.value, ", ") == "" {
			rep.problem(c.origin, set.Key, "is empty; write addresses joined by commas, or leave it out")
			continue
		}
		switch {
		case set.Flag == "vip":
			raw.remove("vip")
			raw.remove(keyVIPs)
			raw.setList(keyVIPs, "", c)
		case set.Flag == keyJoin:
			raw.remove(keyJoin)
			raw.setList(keyJoin, "", c)
		case set.Flag == "admin-listen":
			raw.remove(keyListen)
			raw.setList(keyListen, "", c)
		case set.Flag == "peers":
			// The members of the group are one statement. Half of it from the file
			// and half from a flag would be a group that nobody wrote.
			raw.remove(keyPeers)
			raw.remove("localPeer")
			raw.remove("remotePeers")
			raw.setList(keyPeers, ".address", c)
		case set.Flag == "listen" && raw.lists[keyLBs] == 0:
			raw.setList(keyLBs+"[0].listen", "", c)
		case strings.HasPrefix(set.Key, keyLBs+"[]"):
			if raw.lists[keyLBs] > 0 {
				key := strings.Replace(set.Key, "[]", "[0]", 1)
				rep.problem(c.origin, set.Key, "is for the load balancer that is made when none is listed, but %s lists some; "+
					"set %s there",
					raw.originOf(keyLBs), key)
				continue
			}
			raw.values[strings.Replace(set.Key, "[]", "[0]", 1)] = c
		default:
			raw.values[set.Key] = c
		}
	}
}

// setList stores the elements of a comma list.
func (r *rawConfig) setList(key, suffix string, c rawValue) {
	i := 0
	for v := range strings.SplitSeq(c.value, ",") {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		r.values[key+"["+strconv.Itoa(i)+"]"+suffix] = rawValue{v, c.origin}
		i++
	}
	r.lists[key] = i
}
