package status

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// remembered is how many events are kept in memory: a bad night of a group
	// of five, at a few hundred bytes each.
	remembered = 1024
	// journalFile is rotated once it has journalBytes, so that twice that much is
	// the most that is ever on disk: some 5,000 events.
	journalFile  = "events.jsonl"
	journalBytes = 1 << 20
	// maxEvent bounds a line that is read back.
	maxEvent = 64 << 10
	// syncAfter is how long an event may be in the page cache only. The death of the
	// process loses none; that of the host may lose those of this time.
	syncAfter = time.Second
)

// A Journal keeps the latest events in memory and on disk. Add never waits for
// the disk: Run writes.
type Journal struct {
	node string
	path string
	max  int64
	log  *slog.Logger

	mu      sync.Mutex
	ring    []Event // the oldest first
	pending []Event
	seq     uint64
	lost    int // of pending, because the disk was too slow
	changed chan struct{}

	wake    chan struct{}
	trouble error // of the last write, owned by Run
}

// OpenJournal reads what earlier lives left below dir. A journal that cannot be
// read is no reason not to start: it is begun anew.
func OpenJournal(dir, node string, log *slog.Logger) *Journal {
	j := &Journal{
		node: node, path: filepath.Join(dir, journalFile), max: journalBytes, log: log,
		changed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	old, err := ReadJournal(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the events of earlier lives cannot be read", "error", err)
	}
	j.ring = old[max(0, len(old)-remembered):]
	for _, e := range j.ring {
		j.seq = max(j.seq, e.Seq)
	}
	return j
}

// ReadJournal reads the events below dir, the oldest first. Lines that a crash
// cut short are passed over.
func ReadJournal(dir string) ([]Event, error) {
	var events []Event
	var errs []error
	found := false
	for _, name := range []string{journalFile + ".1", journalFile} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		found = true
		lines := bufio.NewScanner(bytes.NewReader(data))
		lines.Buffer(nil, maxEvent)
		for lines.Scan() {
			var e Event
			if json.Unmarshal(lines.Bytes(), &e) == nil && !e.Time.IsZero() {
				events = append(events, e)
			}
		}
		if err := lines.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	if !found && len(errs) == 0 {
		return nil, fmt.Errorf("no events in %s: %w; is this the data directory (--data-dir) of an appliance?", dir, fs.ErrNotExist)
	}
	return events, errors.Join(errs...)
}

// Add notes an event, now if it has no time of its own.
func (j *Journal) Add(e Event) {
	j.mu.Lock()
	j.seq++
	e.Seq, e.Node = j.seq, j.node
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	j.ring = append(j.ring, e)
	if len(j.ring) > 2*remembered {
		j.ring = slices.Clone(j.ring[len(j.ring)-remembered:])
	}
	if len(j.pending) < remembered {
		j.pending = append(j.pending, e)
	} else {
		j.lost++
	}
	close(j.changed)
	j.changed = make(chan struct{})
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Since returns the events after seq, the oldest first, and a channel that is
// closed at the next one.
func (j *Journal) Since(seq uint64) ([]Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	from := len(j.ring)
	for from > 0 && j.ring[from-1].Seq > seq && len(j.ring)-from < remembered {
		from--
	}
	return slices.Clone(j.ring[from:]), j.changed
}

// Last is the newest event, false if there is none.
func (j *Journal) Last() (Event, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ring) == 0 {
		return Event{}, false
	}
	return j.ring[len(j.ring)-1], true
}

// Run writes events to disk until ctx ends, and then those that are left.
func (j *Journal) Run(ctx context.Context) error {
	w := &journalWriter{path: j.path, max: j.max}
	defer w.close()
	var dirty <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			j.write(w)
			return nil
		case <-j.wake:
			j.write(w)
			if dirty == nil {
				dirty = time.After(syncAfter)
			}
		case <-dirty:
			dirty = nil
			if w.file != nil {
				j.note(w.file.Sync())
			}
		}
	}
}

// write writes what is pending. A disk that refuses loses it: the ring in
// memory still has it, and a queue without bound would end the process.
func (j *Journal) write(w *journalWriter) {
	j.mu.Lock()
	pending, lost := j.pending, j.lost
	j.pending, j.lost = nil, 0
	j.mu.Unlock()
	if lost > 0 {
		j.log.Warn("events came faster than the disk took them", "lost", lost)
	}
	for _, e := range pending {
		if err := w.append(e); err != nil {
			j.note(err)
			return
		}
	}
	j.note(nil)
}

// note logs the beginning and the end of trouble with the disk.
func (j *Journal) note(err error) {
	switch {
	case err != nil && j.trouble == nil:
		j.log.Warn("events cannot be written to disk, only those in memory are shown; free some space",
			"dir", filepath.Dir(j.path), "free", free(filepath.Dir(j.path)), "error", err)
	case err == nil && j.trouble != nil:
		j.log.Info("events are written to disk again")
	}
	j.trouble = err
}

// free is how much room is left below dir, for people.
func free(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "unknown: " + err.Error()
	}
	block := uint64(fs.Bsize)
	return fmt.Sprintf("%s of %s, %d of %d files", amount(fs.Bavail*block), amount(fs.Blocks*block), fs.Ffree, fs.Files)
}

// journalWriter appends lines to a file, and begins another when it is full.
type journalWriter struct {
	path string
	max  int64
	file *os.File
	size int64
}

func (w *journalWriter) append(e Event) error {
	line, err := json.Marshal(e)
	if err != nil || len(line) >= maxEvent {
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
	// One write: what a crash cuts short is at most one line.
	n, err := w.file.Write(line)
	w.size += int64(n)
	if err != nil {
		w.close() // the next one begins a line of its own
	}
	return err
}

func (w *journalWriter) open() error {
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

func (w *journalWriter) close() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
}
