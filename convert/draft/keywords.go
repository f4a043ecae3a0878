package draft

import (
	"maps"
	"slices"
	"strings"
)

// A Remark is a note that all statements with some keyword get.
type Remark struct {
	// Keywords are separated by spaces. One that ends in * stands for all that begin so.
	Keywords string
	Moot     bool
	Text     string
}

// Remarks are remarks by keyword.
type Remarks map[string]Remark

// NewRemarks indexes remarks by their keywords.
func NewRemarks(list ...Remark) Remarks {
	all := Remarks{}
	for _, r := range list {
		for _, word := range strings.Fields(r.Keywords) {
			all[word] = r
		}
	}
	return all
}

// find is the remark for a keyword: that of the word itself, or of the longest beginning.
func (all Remarks) find(keyword string) (Remark, bool) {
	if r, ok := all[keyword]; ok {
		return r, true
	}
	for n := len(keyword); n > 0; n-- {
		if r, ok := all[keyword[:n]+"*"]; ok {
			return r, true
		}
	}
	return Remark{}, false
}

// A Keyword is a word of a program's configuration and what becomes of it.
type Keyword struct {
	// Block is the part of the configuration where it stands.
	Block, Word string
	Fate        Fate
	// Reason says why it is not carried over.
	Reason string
}

// A Fate is what becomes of a keyword.
type Fate string

// The fates.
const (
	Carried Fate = "carried"
	Left    Fate = "left out, or its load balancer refused"
	NoSense Fate = "without meaning"
)

// Keywords lists those of a block: what is carried over, and what gets remarks.
func Keywords(block string, carried []string, all ...Remarks) (list []Keyword) {
	for _, word := range carried {
		list = append(list, Keyword{block, word, Carried, ""})
	}
	for _, remarks := range all {
		for word, r := range remarks {
			fate := Left
			if r.Moot {
				fate = NoSense
			}
			list = append(list, Keyword{block, word, fate, r.Text})
		}
	}
	slices.SortFunc(list, func(a, b Keyword) int { return strings.Compare(a.Word, b.Word) })
	return list
}

// Words are the keywords of a table, and more.
func Words[T any](table map[string]T, more ...string) []string {
	return append(slices.Collect(maps.Keys(table)), more...)
}
