package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// User is whom the service runs as. Its group, which has nobody else, has the same name.
const User = "appliance"

// DropInFile is where a package's unit is given what a configuration needs beside it.
const DropInFile = "/etc/systemd/system/appliance.service.d/50-configuration.conf"

// Accounts are the users of a machine.
type Accounts interface {
	// IDs are the numbers of User and its group; false if there is no such user.
	IDs() (uid, gid int, ok bool)
	// Make makes User and its group, Remove removes them.
	Make() error
	Remove() error
}

// Local are the users of this machine.
type Local struct{}

// IDs looks User up.
func (Local) IDs() (uid, gid int, ok bool) {
	u, err := user.Lookup(User)
	if err != nil {
		return 0, 0, false
	}
	g, err := user.LookupGroup(User)
	if err != nil {
		return 0, 0, false
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(g.Gid)
	return uid, gid, err1 == nil && err2 == nil
}

// ways are commands for the same end; the first whose program is there is taken.
func ways(all ...[][]string) error {
	for _, commands := range all {
		if _, err := exec.LookPath(commands[0][0]); err != nil {
			continue
		}
		for _, c := range commands {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, strings.TrimSpace(string(out)))
			}
		}
		return nil
	}
	return errors.New("this machine has neither the programs of shadow nor those of busybox; make or remove the system " +
		"user " + User + " with a group of the same name by hand")
}

// Make uses the programs of shadow or of busybox.
func (Local) Make() error {
	return ways(
		[][]string{{"useradd", "--system", "--user-group", "--no-create-home", "--home-dir", dataDir,
			"--shell", "/usr/sbin/nologin", User}},
		[][]string{{"addgroup", "-S", User},
			{"adduser", "-S", "-D", "-H", "-h", dataDir, "-s", "/sbin/nologin", "-G", User, User}})
}

// Remove leaves a user that Make has not made.
func (Local) Remove() error {
	if u, err := user.Lookup(User); err != nil || u.HomeDir != dataDir {
		return nil
	}
	return ways([][]string{{"userdel", User}}, [][]string{{"deluser", User}})
}

// owned lists the steps after which User may read files, as far as they are root's and below /etc/appliance, and has
// data for its own. Root keeps the files, so that User can change none of them.
func (h host) owned(accounts Accounts, files []string, data string) (steps []Step) {
	uid, gid, known := accounts.IDs()
	ids := func() (int, int, error) {
		if uid, gid, ok := accounts.IDs(); ok {
			return uid, gid, nil
		}
		return 0, 0, fmt.Errorf("there is no user %s; run `appliance install`, or make it by hand", User)
	}
	var seen []string
	share := func(p string) {
		if slices.Contains(seen, p) {
			return
		}
		seen = append(seen, p)
		if info, err := os.Lstat(h.path(p)); known && err == nil && !shares(info, gid) {
			return
		}
		steps = append(steps, Step{"let user " + User + " read " + p, func() error {
			_, gid, err := ids()
			if err != nil {
				return err
			}
			return h.share(p, gid)
		}})
	}
	for _, f := range files {
		f = filepath.Clean(f)
		if !strings.HasPrefix(f, configDir+"/") {
			continue
		}
		var dirs []string
		for d := filepath.Dir(f); d != "/" && len(d) >= len(configDir); d = filepath.Dir(d) {
			dirs = append(dirs, d)
		}
		slices.Reverse(dirs)
		for _, d := range dirs {
			share(d)
		}
		share(f)
	}
	if data == "" || known && !h.foreign(data, uid, gid, nil) {
		return steps
	}
	return append(steps, Step{"give " + data + " to user " + User, func() error {
		uid, gid, err := ids()
		if err != nil {
			return err
		}
		var failed error
		h.foreign(data, uid, gid, &failed)
		return failed
	}})
}

// shares reports whether share would change something: what is root's, and was given to no group on purpose.
func shares(info fs.FileInfo, gid int) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || s.Uid != 0 || s.Gid != 0 && int(s.Gid) != gid {
		return false
	}
	mode := info.Mode().Perm()
	switch {
	case info.IsDir():
		return mode&0o005 != 0o005 && (mode&0o050 != 0o050 || int(s.Gid) != gid)
	case info.Mode().IsRegular():
		return mode&0o004 == 0 && (mode&0o040 == 0 || int(s.Gid) != gid)
	}
	return false
}

func (h host) share(p string, gid int) error {
	f, err := os.OpenFile(h.path(p), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !shares(info, gid) {
		return err
	}
	mode := fs.FileMode(0o040)
	if info.IsDir() {
		mode = 0o050
	}
	return errors.Join(f.Chown(0, gid), f.Chmod(info.Mode().Perm()&^0o070|mode))
}

// foreign reports whether a directory has anything of root's, as an earlier version or a command of root's has left it.
// With failed it is given to a user, without following links: who owns the directory could have put them there.
func (h host) foreign(p string, uid, gid int, failed *error) (found bool) {
	top, err := os.Lstat(h.path(p))
	if err != nil || !top.IsDir() {
		return false // it is made later, for the right user
	}
	root, err := os.OpenRoot(h.path(p))
	if err != nil {
		if failed != nil {
			*failed = err
		}
		return true
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		// A second name may be one outside.
		s, ok := info.Sys().(*syscall.Stat_t)
		if !ok || s.Uid != 0 || uid == 0 || !info.IsDir() && (!info.Mode().IsRegular() || s.Nlink > 1) {
			return nil
		}
		found = true
		if failed != nil {
			return f.Chown(uid, gid)
		}
		return nil
	})
	if failed != nil && err != nil {
		*failed = err
	}
	return found
}

// Prepare lists what is done before the service starts: what root has written since is given to its user. dropIn, unless
// it is nil, takes the place of the one that is there; with an empty one that is removed.
func Prepare(root string, accounts Accounts, files []string, data string, dropIn []byte) []Step {
	h := host{root}
	steps := h.owned(accounts, files, data)
	if dropIn != nil {
		steps = append(steps, h.dropIn(dropIn)...)
	}
	return slices.DeleteFunc(steps, func(s Step) bool { return s.run == nil })
}

// dropIn writes, replaces or removes what adapts a package's unit.
func (h host) dropIn(text []byte) []Step {
	have, err := h.read(DropInFile)
	ours := err == nil && strings.HasPrefix(string(have), mark)
	switch {
	case err == nil && !ours:
		return []Step{{"keep " + DropInFile + ": it is not of `appliance install`", nil}}
	case len(text) > 0:
		return []Step{h.file(DropInFile, append([]byte(mark), text...), 0o644, true)}
	case ours:
		return []Step{h.remove(DropInFile)}
	}
	return nil
}
