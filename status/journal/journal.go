package journal

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"appliance/status"
)

const (
	// keptInMemory is how many events are kept in memory: a bad night of a group of five, at a few hundred bytes each.
	keptInMemory = 1024
	// The file is rotated once it has maxFile bytes, so at most twice that much is on disk: some 5,000 events.
	fileName = "events.jsonl"
	maxFile  = 1 << 20
	// MaxEvent bounds the bytes of one line that is read back.
	MaxEvent = 64 << 10
	// syncAfter is how long an event may stay in the page cache only. A crash of the process loses no event; a crash
	// of the host may lose those of this time.
	syncAfter = time.Second
)

// A Journal keeps the latest events in memory and on disk. Add never waits for the disk, because Run writes.
type Journal struct {
	node string
	path string
	max  int64
	log  *slog.Logger

	mu      sync.Mutex
	ring    []status.Event // the oldest first
	pending []status.Event
	seq     uint64
	lost    int // events dropped from pending, because the disk was too slow
	changed chan struct{}

	wake    chan struct{}
	failing error // of the last write; owned by Run
}

// Open reads the events that earlier runs left below dir. A journal that cannot be read must not keep the appliance
// from starting: a new one is begun.
func Open(dir, node string, log *slog.Logger) *Journal {
	j := &Journal{
		node: node, path: filepath.Join(dir, fileName), max: maxFile, log: log,
		changed: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	old, err := Read(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("the events of earlier runs cannot be read", "error", err)
	}
	j.ring = old[max(0, len(old)-keptInMemory):]
	for _, e := range j.ring {
		j.seq = max(j.seq, e.Seq)
	}
	return j
}

// Add appends an event, with the time of now if it has none.
func (j *Journal) Add(e status.Event) {
	j.mu.Lock()
	j.seq++
	e.Seq, e.Node = j.seq, j.node
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	j.ring = append(j.ring, e)
	if len(j.ring) > 2*keptInMemory {
		j.ring = slices.Clone(j.ring[len(j.ring)-keptInMemory:])
	}
	if len(j.pending) < keptInMemory {
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

// Since returns the events after seq, the oldest first, and a channel that is closed when the next one is added.
func (j *Journal) Since(seq uint64) ([]status.Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	from := len(j.ring)
	for from > 0 && j.ring[from-1].Seq > seq && len(j.ring)-from < keptInMemory {
		from--
	}
	return slices.Clone(j.ring[from:]), j.changed
}

// Last returns the newest event, false if there is none.
func (j *Journal) Last() (status.Event, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ring) == 0 {
		return status.Event{}, false
	}
	return j.ring[len(j.ring)-1], true
}

// Run writes events to disk until ctx ends, and then writes those that are left.
func (j *Journal) Run(ctx context.Context) error {
	w := &file{path: j.path, max: j.max}
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

// write writes the pending events. If the disk fails they are lost to it, but the ring in memory still has them; an
// unbounded queue would end the process.
func (j *Journal) write(w *file) {
	j.mu.Lock()
	pending, lost := j.pending, j.lost
	j.pending, j.lost = nil, 0
	j.mu.Unlock()
	if lost > 0 {
		j.log.Warn("events came faster than the disk could write them", "lost", lost)
	}
	for _, e := range pending {
		if err := w.append(e); err != nil {
			j.note(err)
			return
		}
	}
	j.note(nil)
}

// note logs when trouble with the disk starts and when it ends.
func (j *Journal) note(err error) {
	switch {
	case err != nil && j.failing == nil:
		j.log.Warn("events cannot be written to disk and are kept in memory only; free some space",
			"dir", filepath.Dir(j.path), "free", free(filepath.Dir(j.path)), "error", err)
	case err == nil && j.failing != nil:
		j.log.Info("events are written to disk again")
	}
	j.failing = err
}
