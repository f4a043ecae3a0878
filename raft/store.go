package raft

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// store is the disk: log, term and vote in one database, and snapshots. Log and
// term have to be on the same disk: hashicorp/raft takes either for state.
type store struct {
	*boltdb.BoltStore
	voteTerm uint64 // the term of the vote that is about to be stored; raft's main loop's own
	snaps    *hraft.FileSnapshotStore
	stop     chan struct{}

	mu      sync.Mutex
	problem error
	onError func(error)
}

// lockTimeout is how long another process may still be holding the database,
// as one that is just being replaced does.
const lockTimeout = 2 * time.Second

// retained snapshots: the last, and the one before in case the last is damaged.
const retained = 2

// ErrDamaged is of a data directory whose content cannot be trusted.
var ErrDamaged = errors.New("damaged")

func openStore(dir string, log hclog.Logger) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w; make it writable or choose another", err)
	}
	path := filepath.Join(dir, "raft.db")
	db, err := openBolt(path)
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return nil, fmt.Errorf("%s is in use by another process; stop the other instance, or give this one its own data directory", path)
	case errors.Is(err, bbolt.ErrInvalid), errors.Is(err, bbolt.ErrChecksum), errors.Is(err, bbolt.ErrVersionMismatch):
		return nil, fmt.Errorf("%s is %w (%w); move it away, and this peer joins its group again as a new one", path, ErrDamaged, err)
	case err != nil:
		return nil, fmt.Errorf("data directory: %w; make %s writable", err, dir)
	}
	snaps, err := hraft.NewFileSnapshotStoreWithLogger(dir, retained, log)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("data directory: %w; make %s writable", err, dir)
	}
	return &store{BoltStore: db, snaps: snaps, stop: make(chan struct{})}, nil
}

// openBolt turns the panics with which bbolt greets a damaged file into errors.
func openBolt(path string) (db *boltdb.BoltStore, err error) {
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("%w: %v", bbolt.ErrInvalid, r)
		}
	}()
	return boltdb.New(boltdb.Options{Path: path, BoltOptions: &bbolt.Options{Timeout: lockTimeout}})
}

// formatKey is the version of what is in the data directory.
const formatKey = "format"

// checkFormat refuses data of a newer version, and marks new data.
func (s *store) checkFormat() error {
	text, err := s.Get([]byte(formatKey))
	if err != nil || len(text) == 0 {
		return s.BoltStore.Set([]byte(formatKey), []byte(strconv.Itoa(formatVersion)))
	}
	if v, err := strconv.Atoi(string(text)); err != nil || v > formatVersion {
		return fmt.Errorf("it was written by a newer version (format %s, this program knows up to %d); install that version here", text, formatVersion)
	}
	return nil
}

// hasState tells a peer that has been in a group from a new one.
func (s *store) hasState() (bool, error) {
	return hraft.HasExistingState(s, s, s.snaps)
}

// persist is how terms and votes are stored. hashicorp/raft panics if a term
// cannot be stored; a full disk must neither kill the process nor let it go
// on without having remembered. So this blocks raft's main loop until the disk takes it: a
// peer that cannot write does not vote, does not answer and holds nothing, and
// takes part again by itself.
func (s *store) persist(write func() error) error {
	for {
		err := write()
		s.note(err)
		if err == nil {
			return nil
		}
		select {
		case <-s.stop:
			// Shutting down: returning an error would panic, returning nil
			// would be a lie. End raft's goroutine; its defers run.
			runtime.Goexit()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// StoreLogs fails without harm: a leader steps down, a follower says no.
func (s *store) StoreLogs(logs []*hraft.Log) error {
	err := s.BoltStore.StoreLogs(logs)
	s.note(err)
	return err
}

// StoreLog is StoreLogs of one.
func (s *store) StoreLog(log *hraft.Log) error { return s.StoreLogs([]*hraft.Log{log}) }

func (s *store) note(err error) {
	s.mu.Lock()
	changed := (err == nil) != (s.problem == nil)
	s.problem = err
	tell := s.onError
	s.mu.Unlock()
	if changed && tell != nil {
		tell(err)
	}
}

// trouble is what keeps the peer from writing, or nil.
func (s *store) trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

var _ io.Closer = (*store)(nil)
