package status

import (
	"fmt"
	"strings"
)

// Privileges say what the process may do on its host.
type Privileges struct {
	User         int      `json:"user"`
	Capabilities []string `json:"capabilities"`
	// NoNewPrivs says that no program that it runs may do more.
	NoNewPrivs bool `json:"noNewPrivs"`
	// Seccomp says that system calls are filtered.
	Seccomp bool `json:"seccomp"`
	// Dumpable says that its own user may read its memory.
	Dumpable bool `json:"dumpable"`
}

// String is for people.
func (p Privileges) String() string {
	words := []string{fmt.Sprint("user ", p.User), "no capabilities"}
	if len(p.Capabilities) > 0 {
		words[1] = strings.Join(p.Capabilities, " ")
	}
	for _, w := range []struct {
		is        bool
		yes, isNo string
	}{
		{p.NoNewPrivs, "no_new_privs", "may get new privileges"},
		{p.Seccomp, "seccomp", "no seccomp"},
		{!p.Dumpable, "not dumpable", "dumpable"},
	} {
		if w.is {
			words = append(words, w.yes)
		} else {
			words = append(words, w.isNo)
		}
	}
	return strings.Join(words, ", ")
}
