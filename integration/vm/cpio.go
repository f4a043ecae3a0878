package vm

import (
	"fmt"
	"io"
	"os"
)

// cpioWriter writes an archive in the "newc" form, the one that the kernel
// unpacks (Documentation/driver-api/early-userspace/buffer-format.rst). The
// first error stays and ends the writing.
type cpioWriter struct {
	w   io.Writer
	ino int
	err error
}

// Modes of stat(2).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
)

func (c *cpioWriter) dir(name string) { c.entry(name, modeDir|0o755, nil, 0, 0) }

func (c *cpioWriter) file(name string, perm int, data []byte) {
	c.entry(name, modeFile|perm, data, 0, 0)
}

func (c *cpioWriter) device(name string, major, minor int) {
	c.entry(name, modeChar|0o600, nil, major, minor)
}

func (c *cpioWriter) copy(name string, perm int, from string) {
	data, err := os.ReadFile(from)
	if err != nil && c.err == nil {
		c.err = err
	}
	c.file(name, perm, data)
}

func (c *cpioWriter) end() { c.entry("TRAILER!!!", 0, nil, 0, 0) }

func (c *cpioWriter) entry(name string, mode int, data []byte, major, minor int) {
	if c.err != nil {
		return
	}
	c.ino++
	// magic, then thirteen fields of eight hexadecimal digits: inode, mode,
	// uid, gid, links, mtime, size, device (2), special device (2), length of
	// the name with its NUL, checksum.
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	c.padded([]byte(head))
	c.padded(data)
}

// padded writes b and fills up to four bytes; every entry starts at a
// multiple of four, so that the length alone tells the padding.
func (c *cpioWriter) padded(b []byte) {
	b = append(b, make([]byte, -len(b)&3)...)
	if _, err := c.w.Write(b); err != nil && c.err == nil {
		c.err = err
	}
}
