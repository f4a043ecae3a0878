package node

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"appliance/configs"
)

// fill takes all room of the file system at dir, and returns the file that has it.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return f.Name()
}

func TestFullDataDir(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a small file system is mounted by root")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m,nr_inodes=16"); err != nil {
		t.Skip("no tmpfs can be mounted here: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(disk, "a", "b") // below what there is
	refused := func() {
		t.Helper()
		err := writable(dir)
		if err == nil {
			t.Fatal("a full disk is no problem")
		}
		for _, want := range []string{"dataDir " + dir, "is full", "no space left", " MiB, ", " files", "free some room"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q is not in: %v", want, err)
			}
		}
	}
	filler := fill(t, disk)
	refused()
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := writable(dir); err != nil {
		t.Errorf("with room: %v", err)
	}
	var inodes []string
	for err := error(nil); err == nil; {
		var f *os.File
		if f, err = os.CreateTemp(disk, "inode-*"); err == nil {
			inodes = append(inodes, f.Name())
			f.Close()
		}
	}
	refused()
	if left, _ := filepath.Glob(filepath.Join(disk, ".appliance-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if len(inodes) == 0 {
		t.Error("the file system never was full")
	}
}

// No retry mends a dataDir that is a file, or below one.
func TestDataDirIsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "data")} {
		var p configs.Problem
		if err := writable(dir); !errors.As(err, &p) || p.Key != "dataDir" ||
			!strings.Contains(p.Text, file+" is not a directory") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// No retry mends a socket's path that something else has; a directory that is missing is made later, and a socket that a
// crash left is replaced.
func TestSocketPlace(t *testing.T) {
	dir := t.TempDir()
	file, left := filepath.Join(dir, "file"), filepath.Join(dir, "left")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for path, want := range map[string]string{
		file:                       "a file that is not a socket is there",
		dir:                        "a file that is not a socket is there",
		filepath.Join(file, "s"):   "a part of the path is a file",
		filepath.Join(dir, "a/s"):  "",
		filepath.Join(dir, "free"): "",
		left:                       "",
	} {
		err := socketPlace(path)
		var p configs.Problem
		if want == "" && err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if want != "" && (!errors.As(err, &p) || p.Key != "socket" || !strings.Contains(p.Text, want)) {
			t.Errorf("%s: %v, want a problem of socket: %s", path, err, want)
		}
	}
	// And the whole look at the host says so before anything on it is touched.
	var p configs.Problem
	_, err = survey(&configs.Config{Socket: file, DataDir: dir})
	if !errors.As(err, &p) || !strings.Contains(err.Error(), "socket: ") {
		t.Errorf("the look at the host: %v", err)
	}
}

// No retry mends a process without its capabilities.
func TestMissingCapabilities(t *testing.T) {
	runtime.LockOSThread() // for good: the thread ends with the test, and what it lacks is for no other
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	cfg := &configs.Config{VIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	if err := capabilities(cfg); err != nil {
		t.Fatalf("with all of root's: %v", err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	var p configs.Problem
	if err := capabilities(cfg); !errors.As(err, &p) || !strings.Contains(p.Text, "CAP_NET_RAW") ||
		strings.Contains(p.Text, "CAP_NET_ADMIN") {
		t.Errorf("without CAP_NET_RAW: %v", err)
	}
}
