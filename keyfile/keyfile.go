package keyfile

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// Who may read a file beside its owner.
const (
	OwnerOnly = fs.FileMode(0o077) // nobody
	GroupToo  = fs.FileMode(0o037) // its group, as is usual for the keys of certificates
)

// maxSize is more than any key has, or all authorities of a system have.
const maxSize = 4 << 20

// serviceGroup is the group of the service's own user, which has nobody else.
const serviceGroup = "appliance"

// ForService reports whether a file is root's and of the service's own group: that group may read it.
func ForService(info fs.FileInfo) bool { return ofGroup(info, serviceGroupID()) }

// serviceGroupID is the number of the service's own group; without one it is root's.
func serviceGroupID() int {
	g, err := user.LookupGroup(serviceGroup)
	if err != nil {
		return 0
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0
	}
	return id
}

func ofGroup(info fs.FileInfo, gid int) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && gid != 0 && s.Uid == 0 && int(s.Gid) == gid
}

// Check says what is wrong with a file for a secret. Only root or this user may own it, and deny are the permissions
// that it may not have, but that the service's own group may read what is root's.
func Check(path string, info fs.FileInfo, deny fs.FileMode) error {
	return check(path, info, deny, serviceGroupID)
}

func check(path string, info fs.FileInfo, deny fs.FileMode, service func() int) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file; write the key to a file", path)
	}
	mode := info.Mode().Perm()
	if mode&0o040 != 0 && ofGroup(info, service()) {
		deny &^= 0o040
	}
	if mode&deny != 0 {
		does := "read"
		if mode&deny&0o044 == 0 {
			does = "changed"
		}
		return fmt.Errorf("%s can be %s by others (mode %04o); run: chmod %o %s",
			path, does, mode, 0o600|mode&^deny&0o040, path)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who can read and exchange it; run: chown %d %s",
			path, s.Uid, os.Geteuid(), path)
	}
	return nil
}

// Open opens a file for Check. A pipe that nobody writes to would hold up the start, and the signal that ends it.
func Open(path string) (*os.File, error) { return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) }

// Read reads a file with a secret, if Check finds nothing wrong with it.
func Read(path string, deny fs.FileMode) ([]byte, error) {
	return read(path, func(info fs.FileInfo) error { return Check(path, info, deny) })
}

// ReadPublic reads a certificate, which anybody may know. A pipe or a device would hold up the start, or fill the memory.
func ReadPublic(path string) ([]byte, error) {
	return read(path, func(info fs.FileInfo) error {
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file; write the certificate to a file", path)
		}
		return nil
	})
}

// read reads the file that check has looked at, if it finds nothing wrong with it.
func read(path string, check func(fs.FileInfo) error) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := check(info); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxSize))
}
