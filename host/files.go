package host

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// minReserve is how many files are kept back at least: for the group, the checks, the admin listener, the socket of
	// `appliance status`, the kernel's netlink sockets, the database and the programs of tracks and hooks.
	minReserve = 128
	// maxReserve is enough for some hundred backends and workers.
	maxReserve = 1024
)

// FilesForClients raises the soft limit of open files to the hard one, and returns how many of them clients may hold in
// user space. The rest is kept back for the group, the checks and the operator.
func FilesForClients() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("find out how many files may be open: %w", err)
	}
	if limit.Cur < limit.Max {
		// Go does the same when it starts, but not if somebody has set the limit since.
		raised := unix.Rlimit{Cur: limit.Max, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			limit = raised
		}
	}
	most := limit.Cur
	// The host's own limit is shared with the shell of whoever comes to look.
	if text, err := os.ReadFile("/proc/sys/fs/file-max"); err == nil {
		var all uint64
		if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &all); err == nil {
			most = min(most, all-all/10)
		}
	}
	return forClients(most), nil
}

// forClients is what is left of most files after the reserve, at least half.
func forClients(most uint64) int {
	reserve := min(max(most/4, minReserve), maxReserve, most/2)
	return int(min(most-reserve, 1<<30))
}
