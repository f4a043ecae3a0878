package script

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may go through, as in the kernel (path_resolution(7)).
const maxLinks = 40

// find opens the file at path. It goes from directory to directory by descriptors, and refuses a directory, a link or
// a file that somebody else could exchange for another one.
func find(path string) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s: not an absolute path; begin it with /", path)
	}
	const open = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var dir *os.File
	defer func() { dir.Close() }()
	enter := func(f *os.File) {
		dir.Close() // closing nil is harmless
		dir = f
	}
	root := func() error {
		fd, err := unix.Open("/", open|unix.O_DIRECTORY, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: "/", Err: err}
		}
		enter(os.NewFile(uintptr(fd), "/"))
		return nil
	}
	if err := root(); err != nil {
		return nil, err
	}
	links := 0
	for rest := strings.Split(path, "/"); ; {
		info, err := stat(dir)
		if err != nil {
			return nil, err
		}
		if err := protected(dir.Name(), info); err != nil {
			return nil, err
		}
		for len(rest) > 0 && (rest[0] == "" || rest[0] == ".") {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return nil, fmt.Errorf("%s is no file; give the path of a program", path)
		}
		name := rest[0]
		rest = rest[1:]
		at := filepath.Join(dir.Name(), name)
		fd, err := unix.Openat(int(dir.Fd()), name, open, 0)
		if err != nil {
			return nil, fmt.Errorf("%w; correct the path, or make the file", &os.PathError{Op: "open", Path: at, Err: err})
		}
		f := os.NewFile(uintptr(fd), at)
		if info, err = stat(f); err == nil && info.Mode&unix.S_IFMT == unix.S_IFDIR {
			enter(f)
			continue
		}
		if err == nil {
			err = protected(at, info)
		}
		if err == nil && info.Mode&unix.S_IFMT == unix.S_IFLNK {
			var target string
			if target, err = readLink(f); err == nil {
				if links++; links > maxLinks {
					err = &os.PathError{Op: "open", Path: path, Err: unix.ELOOP}
				}
				if strings.HasPrefix(target, "/") && err == nil {
					err = root()
				}
				rest = append(strings.Split(target, "/"), rest...)
			}
			f.Close()
			if err != nil {
				return nil, err
			}
			continue
		}
		if err == nil && len(rest) > 0 {
			err = &os.PathError{Op: "open", Path: filepath.Join(at, rest[0]), Err: unix.ENOTDIR}
		}
		if err == nil && info.Mode&unix.S_IFMT != unix.S_IFREG {
			err = fmt.Errorf("%s is no file; give the path of a program", path)
		}
		if err == nil && info.Mode&0o111 == 0 {
			err = fmt.Errorf("%s is not executable; run `chmod 755 %s`", path, at)
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
}

func stat(f *os.File) (info unix.Stat_t, err error) {
	if err = unix.Fstat(int(f.Fd()), &info); err != nil {
		err = &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return info, err
}

// readLink is the target of the link that f is.
func readLink(f *os.File) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", b)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(b[:n]), nil
}

// protected refuses what others can write to. In a directory with the sticky bit they cannot replace other people's
// files. A link has no mode of its own.
func protected(at string, info unix.Stat_t) error {
	kind := info.Mode & unix.S_IFMT
	sticky := kind == unix.S_IFDIR && info.Mode&unix.S_ISVTX != 0
	if info.Mode&0o022 != 0 && !sticky && kind != unix.S_IFLNK {
		return fmt.Errorf("%s can be written by its group or by everybody, who could then run anything as this user; "+
			"run `chmod go-w %s`", at, at)
	}
	if info.Uid != 0 && int(info.Uid) != os.Geteuid() {
		option := ""
		if kind == unix.S_IFLNK {
			option = "-h "
		}
		return fmt.Errorf("%s belongs to user %d, who could then run anything as this user; run `chown %sroot %s`",
			at, info.Uid, option, at)
	}
	return nil
}

// mayRun says whether a user may run the file, by its mode. An interpreter reads a script as that user.
func mayRun(f *os.File, who identity) error {
	info, err := stat(f)
	if err != nil || who.uid == 0 {
		return err
	}
	shift := 0
	switch {
	case info.Uid == who.uid:
		shift = 6
	case who.inGroup(info.Gid):
		shift = 3
	}
	need, words := uint32(0o1), "x"
	if isScript(f) {
		need, words = 0o5, "rx"
	}
	if info.Mode>>shift&need != need {
		return fmt.Errorf("user %s may not run %s; run `chmod o+%s %s`, or write another user, such as user: root",
			who.name, f.Name(), words, f.Name())
	}
	return nil
}

// isScript reports whether the file begins with #!, as an interpreter's script does.
func isScript(f *os.File) bool {
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return !errors.Is(err, os.ErrPermission) // who cannot read it should ask for more rather than for less
	}
	defer r.Close()
	mark := make([]byte, 2)
	_, err = io.ReadFull(r, mark)
	return err == nil && string(mark) == "#!"
}
