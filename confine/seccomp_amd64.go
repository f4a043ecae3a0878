package confine

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_X86_64
	// maxNumber is where the numbers of the ABI x32 begin.
	maxNumber = 0x40000000
)

// deniedHere are those that only this architecture has.
var deniedHere = []uint32{
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_CREATE_MODULE, unix.SYS_USELIB, unix.SYS__SYSCTL,
	unix.SYS_NFSSERVCTL,
}
