package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		mode, deny fs.FileMode
		want       string
	}{
		{0o600, OwnerOnly, ""},
		{0o400, OwnerOnly, ""},
		{0o640, OwnerOnly, "can be read by others (mode 0640); run: chmod 600 " + path},
		{0o644, OwnerOnly, "can be read by others (mode 0644); run: chmod 600 "},
		{0o620, OwnerOnly, "can be changed by others (mode 0620); run: chmod 600 "},
		{0o640, GroupToo, ""},
		{0o644, GroupToo, "can be read by others (mode 0644); run: chmod 640 "},
		{0o660, GroupToo, "can be changed by others (mode 0660); run: chmod 640 "},
	} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		text, err := Read(path, tt.deny)
		switch {
		case tt.want == "" && (err != nil || string(text) != "secret\n"):
			t.Errorf("%o: %q, %v", tt.mode, text, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%o: %v, want %s", tt.mode, err, tt.want)
		}
	}
	if _, err := Read(filepath.Dir(path), OwnerOnly); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 12345, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, OwnerOnly); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Error(err)
	}
}

// The service's own group may read what is root's, and nothing more.
func TestServiceGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	const gid = 4242
	path := filepath.Join(t.TempDir(), "key")
	for _, tt := range []struct {
		uid, gid, service int
		mode              fs.FileMode
		ok                bool
	}{
		{0, gid, gid, 0o640, true},
		{0, gid, gid, 0o440, true},
		{0, gid, gid, 0o660, false},   // it could exchange it
		{0, gid, gid, 0o644, false},   // others
		{0, 100, gid, 0o640, false},   // another group
		{0, 0, 0, 0o640, false},       // there is no such group
		{gid, gid, gid, 0o640, false}, // it is not root's
	} {
		os.Remove(path)
		err := errors.Join(os.WriteFile(path, []byte("secret\n"), 0o600), os.Chown(path, tt.uid, tt.gid),
			os.Chmod(path, tt.mode))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(path, info, OwnerOnly, func() int { return tt.service }); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// A pipe is refused, and not waited for.
func TestReadPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := Read(path, OwnerOnly)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "is not a regular file; write the key to a file") {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits")
	}
}
