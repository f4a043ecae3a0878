package configs

import (
	"strconv"
	"strings"
)

// choices lists words as people do: a, b or c.
func choices(words []string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func suffixed(words []string, suffix string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w + suffix
	}
	return out
}

// printable is s, quoted if it could disturb a terminal or a log line.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` || s == "" {
		return q
	}
	return s
}

// nearest is the known word that word is most probably meant to be, or empty
// if none is near: more than two letters or a third of them differ, and
// neither is short for the other.
func nearest(word string, known []string) string {
	if len(word) > 64 {
		return ""
	}
	best, near := "", min(2, len(word)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < near {
			best, near = k, d
		}
	}
	for _, k := range known {
		if w := strings.ToLower(word); best == "" && len(k) > 3 && strings.HasPrefix(w, strings.ToLower(k)) {
			best = k
		}
	}
	return best
}

// distance is the number of letters to insert, remove, change or swap with
// their neighbour to come from a to b (optimal string alignment).
func distance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := prev[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, prev[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
