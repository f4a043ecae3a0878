package journal

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"appliance/status"
	"appliance/status/figures"
)

// Read returns the events below dir, the oldest first. It skips lines that a crash cut short.
func Read(dir string) ([]status.Event, error) {
	var events []status.Event
	var errs []error
	found := false
	for _, name := range []string{fileName + ".1", fileName} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		found = true
		lines := bufio.NewScanner(bytes.NewReader(data))
		lines.Buffer(nil, MaxEvent)
		for lines.Scan() {
			var e status.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil && !e.Time.IsZero() {
				events = append(events, e)
			}
		}
		if err := lines.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if !found && len(errs) == 0 {
		return nil, fmt.Errorf("no events in %s: %w; is this the data directory (--data-dir) of an appliance?",
			dir, fs.ErrNotExist)
	}
	return events, errors.Join(errs...)
}

// free is how much room is left below dir, for people.
func free(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "unknown: " + err.Error()
	}
	block := uint64(fs.Bsize)
	return fmt.Sprintf("%s of %s, %d of %d files", figures.Bytes(fs.Bavail*block), figures.Bytes(fs.Blocks*block),
		fs.Ffree, fs.Files)
}

// A file takes lines, and is replaced by a new one when it is full.
type file struct {
	path string
	max  int64
	file *os.File
	size int64
}

func (w *file) append(e status.Event) error {
	line, err := json.Marshal(e)
	if err != nil || len(line) >= MaxEvent {
		return err
	}
	line = append(line, '\n')
	if w.file != nil && w.size+int64(len(line)) > w.max {
		w.close()
		if err := os.Rename(w.path, w.path+".1"); err != nil {
			return err
		}
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	// One write, so that a crash cuts short at most one line.
	n, err := w.file.Write(line)
	w.size += int64(n)
	if err != nil {
		w.close() // the next event starts on a line of its own
	}
	return err
}

func (w *file) open() error {
	if err := os.MkdirAll(filepath.Dir(w.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	w.file, w.size = f, info.Size()
	last := []byte{'\n'}
	if w.size > 0 {
		_, err = f.ReadAt(last, w.size-1)
	}
	if err == nil && last[0] != '\n' {
		_, err = f.Write([]byte{'\n'})
		w.size++
	}
	return err
}

func (w *file) close() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}
