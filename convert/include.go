package convert

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"appliance/convert/syntax"
)

// A parsedFile is a file as statements.
type parsedFile struct {
	name string
	list []syntax.Statement
}

// asOne is the files of a program as that program reads them: one after the other, or where an include names them.
func asOne(format Format, files []parsedFile) ([]syntax.Statement, error) {
	in := &includer{format: format, files: files, by: map[string]syntax.Place{}, inFolder: map[string]bool{},
		unsure: map[string]error{}}
	var roots []parsedFile
	for _, f := range files {
		in.find(f.name, f.list)
	}
	for _, f := range files {
		if _, ok := in.by[f.name]; !ok {
			roots = append(roots, f)
		}
	}
	for _, f := range files {
		if err := in.unsure[f.name]; err != nil {
			return nil, err
		}
	}
	var all []syntax.Statement
	for _, f := range roots {
		all = append(all, in.expand(f.list)...)
		in.read++
	}
	if in.read < len(files) {
		i := slices.IndexFunc(files, func(f parsedFile) bool { return in.by[f.name].Line > 0 })
		return nil, fmt.Errorf("%s: files include each other in a circle; remove an include", in.by[files[i].name])
	}
	if format == Nginx {
		all = withinStream(all)
	}
	return all, nil
}

// An includer finds which file an include means.
type includer struct {
	format Format
	files  []parsedFile
	by     map[string]syntax.Place // who includes a file
	// inFolder are the files whose include names their folder, unsure those that two includes may mean as well.
	inFolder map[string]bool
	unsure   map[string]error
	read     int // how many files are read
}

// isInclude reports whether a statement includes files.
func (in *includer) isInclude(st syntax.Statement) bool {
	return len(st.Words) == 2 && st.Body == nil && in.format != HAProxy && strings.HasPrefix(st.Words[0], "include")
}

// named are the files that an include means, in the order of their names as the programs have it. Those whose folder is
// known have to be in it.
func (in *includer) named(st syntax.Statement) (list []parsedFile) {
	dir, base := path.Split(st.Words[1])
	for _, f := range in.files {
		at, name := path.Split(f.name)
		ok, err := path.Match(base, name)
		if err != nil || !ok || f.name == st.File {
			continue
		}
		last := path.Base(dir)
		if at != "" && dir != "" && path.IsAbs(f.name) &&
			path.Base(at) != last && path.Base(at) != path.Base(path.Dir(st.File)) {
			continue
		}
		list = append(list, f)
	}
	slices.SortStableFunc(list, func(a, b parsedFile) int { return strings.Compare(a.name, b.name) })
	return list
}

// find notes who includes what. An include that names the file's own folder goes before one that does not, such as
// modules-enabled/*.conf for stream.d/lb.conf. A file that two may mean as well is an error: they may be of different
// blocks.
func (in *includer) find(file string, list []syntax.Statement) {
	for _, st := range list {
		if !in.isInclude(st) {
			in.find(file, st.Body)
			continue
		}
		for _, f := range in.named(st) {
			if slices.ContainsFunc(f.list, func(st syntax.Statement) bool { return st.Words[0] == "stream" && st.Body != nil }) {
				continue // a main file
			}
			dir, at := path.Dir(st.Words[1]), path.Dir(f.name)
			inFolder := at != "." && path.Base(dir) == path.Base(at)
			other, ok := in.by[f.name]
			switch {
			case ok && in.inFolder[f.name] && !inFolder:
				continue
			case ok && in.inFolder[f.name] == inFolder:
				in.unsure[f.name] = fmt.Errorf("%s: may be included by %s or by %s; "+
					"leave the wrong one of these files or lines out", syntax.Printable(f.name), other, st.Place)
			default:
				delete(in.unsure, f.name)
			}
			in.by[f.name], in.inFolder[f.name] = st.Place, inFolder
		}
	}
}

// expand is list with what its includes mean in their places.
func (in *includer) expand(list []syntax.Statement) []syntax.Statement {
	var out []syntax.Statement
	for _, st := range list {
		if in.isInclude(st) {
			some := false
			for _, f := range in.named(st) {
				if in.by[f.name] == st.Place {
					some = true
					in.read++
					out = append(out, in.expand(f.list)...)
				}
			}
			if some {
				continue
			}
		}
		if st.Body != nil {
			st.Body = in.expand(st.Body)
			if st.Body == nil {
				st.Body = []syntax.Statement{}
			}
		}
		out = append(out, st)
	}
	return out
}

// withinStream puts what stands beside a stream block of another file into that block: a file with servers alone is one
// that the block includes.
func withinStream(list []syntax.Statement) []syntax.Statement {
	isStream := func(st syntax.Statement) bool { return st.Words[0] == "stream" && st.Body != nil }
	main := slices.IndexFunc(list, isStream)
	if main < 0 {
		return list
	}
	var out, within []syntax.Statement
	for _, st := range list {
		block := slices.Contains([]string{"server", "upstream", "map"}, st.Words[0])
		if st.File == list[main].File || isStream(st) || !block {
			out = append(out, st)
		} else {
			within = append(within, st)
		}
	}
	main = slices.IndexFunc(out, isStream)
	out[main].Body = append(slices.Clone(out[main].Body), within...)
	return out
}
