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

// A Source is what was said beside the file. A nil function says nothing.
type Source struct {
	// Flag returns a flag's value if it was given on the command line; the
	// values of a list are joined by commas.
	Flag func(name string) (string, bool)
	// Env is os.LookupEnv.
	Env func(name string) (string, bool)
	// FileExists looks for the group key's default place; nil looks for real.
	FileExists func(path string) bool
}

// look finds what flag or environment say about a setting. An empty variable
// says nothing, so that a manifest can leave one blank.
func (s Source) look(set Setting) (cell, bool) {
	if set.Flag == "" {
		return cell{}, false
	}
	if s.Flag != nil {
		if v, ok := s.Flag(set.Flag); ok {
			return cell{v, Origin{Flag: set.Flag}}, true
		}
	}
	if s.Env != nil {
		if v, ok := s.Env(set.Env()); ok && v != "" {
			return cell{v, Origin{Env: set.Env()}}, true
		}
	}
	return cell{}, false
}

// Args is everything that flags and environment say, as arguments: what a
// manifest passes on to the process that it describes.
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

// Load reads the file at path, or the one that src names if path is empty,
// or none, lays environment and flags over it and checks the whole. An error
// holds every problem found, each with its place and the remedy.
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
		return nil, fmt.Errorf("%s: %w; write one with `appliance config sample > %s`, or give --vip and --peers", path, reason, path)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%w; give the path of a YAML file", err)
	}
	return data, nil
}

// Parse is Load for data that is at hand; name stands in messages.
func Parse(name string, data []byte, src Source) (*Config, error) {
	rep := &report{}
	sheet, ok := parseFile(name, data, rep)
	if !ok {
		return nil, rep.err()
	}
	b := &builder{report: rep, sheet: sheet, file: name, src: src, cfg: &Config{}, doubt: len(rep.problems) > 0}
	overlay(sheet, src, rep)
	b.build()
	if err := rep.err(); err != nil {
		return nil, err
	}
	b.cfg.Warnings = rep.warnings
	return b.cfg, nil
}

// overlay lays what flags and environment say over the file.
func overlay(s *sheet, src Source, rep *report) {
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
			s.drop("vip")
			s.drop(keyVIPs)
			s.list(keyVIPs, "", c)
		case set.Flag == keyJoin:
			s.drop(keyJoin)
			s.list(keyJoin, "", c)
		case set.Flag == "admin-listen":
			s.drop(keyListen)
			s.list(keyListen, "", c)
		case set.Flag == "peers":
			// Who is in the group is one statement; half of it from the file
			// and half from a flag would be a group that nobody wrote.
			s.drop(keyPeers)
			s.drop("localPeer")
			s.drop("remotePeers")
			s.list(keyPeers, ".address", c)
		case set.Flag == "listen" && s.lists[keyLBs] == 0:
			s.drop(keyLBs)
			s.list(keyLBs+"[0].listen", "", c)
		case strings.HasPrefix(set.Key, keyLBs+"[]"):
			if s.lists[keyLBs] > 0 {
				key := strings.Replace(set.Key, "[]", "[0]", 1)
				rep.problem(c.origin, set.Key, "is for the load balancer that is made when none is listed, but %s lists some; set %s there",
					s.place(keyLBs), key)
				continue
			}
			s.cells[strings.Replace(set.Key, "[]", "[0]", 1)] = c
		default:
			s.cells[set.Key] = c
		}
	}
}

// list stores the elements of a comma list.
func (s *sheet) list(key, suffix string, c cell) {
	i := 0
	for v := range strings.SplitSeq(c.value, ",") {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		s.cells[key+"["+strconv.Itoa(i)+"]"+suffix] = cell{v, c.origin}
		i++
	}
	s.lists[key] = i
}
