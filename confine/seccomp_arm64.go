package confine

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	// maxNumber is beyond every number there is.
	maxNumber = 0x40000000
)

// deniedHere are those that only this architecture has.
var deniedHere = []uint32{unix.SYS_NFSSERVCTL}
