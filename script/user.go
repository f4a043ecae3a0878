package script

import (
	"fmt"
	"math"
	"os"
	"os/user"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// identity is the user that a program runs as.
type identity struct {
	name     string
	uid, gid uint32
	groups   []uint32
	// other says that it is not the user of this process.
	other bool
}

func (i identity) inGroup(gid uint32) bool { return i.gid == gid || slices.Contains(i.groups, gid) }

const (
	// nobody is who programs run as where nothing else is said.
	nobody = "nobody"
	// nobodyID is the user and group of nobody on a host without /etc/passwd.
	nobodyID = 65534
)

// identify finds a user by name or number. An empty name means nobody where this process may become nobody, and the
// process's own user where it may not.
func identify(name string) (identity, error) {
	own := identity{
		name: strconv.Itoa(os.Geteuid()), uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
	}
	may := mayBecome()
	if name == "" {
		if !may {
			return own, nil
		}
		name = nobody
	}
	who, err := lookup(name)
	if err != nil {
		return who, err
	}
	if who.uid == own.uid {
		own.name = name
		return own, nil
	}
	who.other = true
	if !may {
		return who, fmt.Errorf("user %s: this process may not run programs as another user; leave out user, or give it "+
			"the capabilities SETUID, SETGID and KILL, and start it again", name)
	}
	return who, nil
}

// lookup reads /etc/passwd and /etc/group.
func lookup(name string) (identity, error) {
	id, numeric := parseID(name)
	u, err := user.Lookup(name)
	if err != nil && numeric {
		u, err = user.LookupId(name)
	}
	switch {
	case err == nil:
	case numeric:
		return identity{name: name, uid: id, gid: id}, nil
	case name == "root":
		return identity{name: name}, nil
	case name == nobody:
		return identity{name: name, uid: nobodyID, gid: nobodyID}, nil
	default:
		return identity{}, fmt.Errorf("user %s is not known here; write one that /etc/passwd has, or a number", name)
	}
	who := identity{name: name}
	var ok, ok2 bool
	who.uid, ok = parseID(u.Uid)
	if who.gid, ok2 = parseID(u.Gid); !ok || !ok2 {
		return identity{}, fmt.Errorf("user %s has the id %s and the group %s in /etc/passwd; write another user",
			name, u.Uid, u.Gid)
	}
	groups, err := u.GroupIds()
	if err != nil || name == nobody {
		return who, nil // without further groups it may less
	}
	for _, g := range groups {
		if id, ok := parseID(g); ok {
			who.groups = append(who.groups, id)
		}
	}
	return who, nil
}

// parseID reads a user or group number. The highest means "none" to the kernel.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < math.MaxUint32
}

// mayBecome reports whether this process may run a program as another user, and kill it.
func mayBecome() bool {
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // of 32 capabilities each
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&need == need
}
