package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// TriedKernel is the oldest kernel that the tests run on, that of Debian 12.
const TriedKernel = "6.1"

// OlderKernel is the release of the kernel that runs here, if it is older than TriedKernel or says nothing that can be
// compared, and else "".
func OlderKernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	release := unix.ByteSliceToString(u.Release[:])
	if older(release) {
		return release
	}
	return ""
}

func older(release string) bool {
	var have, tried [2]int
	fmt.Sscanf(release, "%d.%d", &have[0], &have[1])
	fmt.Sscanf(TriedKernel, "%d.%d", &tried[0], &tried[1])
	return have[0] < tried[0] || have[0] == tried[0] && have[1] < tried[1]
}
