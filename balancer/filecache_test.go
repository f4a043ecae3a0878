package balancer

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFileCacheIsNotHeldUp gives what is no file: a pipe that nobody writes to and a device without an end are refused,
// first and when they take the place of the file.
func TestFileCacheIsNotHeldUp(t *testing.T) {
	dir := t.TempDir()
	pipe, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "file")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, "/dev/zero", dir} {
		if _, err := newFileCache(parseToken, path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.WriteFile(file, []byte("abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := newFileCache(parseToken, file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(pipe, file); err != nil {
		t.Fatal(err)
	}
	if got := f.get(); got != "abc" {
		t.Errorf("a pipe in its place leaves %q", got)
	}
}
