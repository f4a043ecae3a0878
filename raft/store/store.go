package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// A Disk keeps log entries and values. What a method has returned for survives a crash.
type Disk interface {
	FirstIndex() (uint64, error)
	LastIndex() (uint64, error)
	GetLog(index uint64, log *hraft.Log) error
	StoreLogs(logs []*hraft.Log) error
	DeleteRange(first, last uint64) error
	// Get fails with the text "not found" if there is no value: hashicorp/raft knows the error by it.
	Get(key []byte) (value []byte, err error)
	Set(key, value []byte) error
	Close() error
}

// Store is the disk: log, term and vote in one database, and snapshots. Log and term have to be on the same
// disk: hashicorp/raft takes either for state.
type Store struct {
	Disk
	voteTerm uint64        // the term of the vote that is about to be stored; raft's main loop's own
	voting   chan struct{} // one place: taken while a vote is stored
	dir      string
	Snaps    *hraft.FileSnapshotStore
	stop     chan struct{}
	hasRoom  func() error
	paced    *paced
	writes   atomic.Bool // raft's main loop waits for a write

	mu       sync.Mutex
	problem  error
	problems int // how often a write has failed
	// OnError is told of a problem, and of its end with nil. It must not wait.
	OnError func(error)
	// OnGrown, if set, is told when something is added to the log. It must not wait.
	OnGrown func()
	// OnSlower, if set, is told when Pace has grown. It must not wait.
	OnSlower func()
}

// A problem lasts until as much as a busy peer writes can be written: on a full disk a vote still fits where an entry
// of the log does not, and a peer that took this for room would take part, and fail, by turns.
const (
	retryEvery = 250 * time.Millisecond
	roomBytes  = 256 << 10 // many entries of the log, with the pages that bbolt writes beside them
	roomFile   = "room"
)

// lockTimeout is how long another process may still hold the database, for example one that is just being
// replaced.
const lockTimeout = 2 * time.Second

// retained is how many snapshots are kept: the last, and one more in case the last is damaged.
const retained = 2

// ErrDamaged is the error for a data directory whose content cannot be trusted.
var ErrDamaged = errors.New("damaged")

// Open opens the data directory dir, and makes it if there is none. Over, if set, returns what stands between the
// store and its database.
func Open(dir string, over func(Disk) Disk, log hclog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w; make it writable or choose another", err)
	}
	_ = os.Remove(filepath.Join(dir, roomFile)) // of a process that was killed meanwhile
	path := filepath.Join(dir, "raft.db")
	db, err := openBolt(path)
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use by another process; stop the other instance, or give this one its "+
			"own data directory", path)
	case err != nil && isDamage(err):
		return nil, fmt.Errorf("%s is %w (%w); move it away, and this peer joins its group again as a new one",
			path, ErrDamaged, err)
	case err != nil:
		return nil, fmt.Errorf("data directory: %w; make %s writable", err, dir)
	}
	snaps, err := hraft.NewFileSnapshotStoreWithLogger(dir, retained, log)
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("data directory: %w; make %s writable", err, dir)
	}
	s := &Store{Disk: db, Snaps: snaps, dir: dir, voting: make(chan struct{}, 1), stop: make(chan struct{})}
	if over != nil {
		s.Disk = over(db)
	}
	s.paced = &paced{Disk: s.Disk, at: time.Now(), slower: func() {
		if s.OnSlower != nil {
			s.OnSlower()
		}
	}}
	s.Disk, s.hasRoom = s.paced, s.tryRoom
	return s, nil
}

// openBolt opens the file at path.
func openBolt(path string) (db *database, err error) {
	err = guarded(func() error {
		db, err = openDatabase(path, &bbolt.Options{Timeout: lockTimeout})
		return err
	})
	return db, err
}

// isDamage says that err is about what is in the file, and not about the file itself.
func isDamage(err error) bool {
	var path *fs.PathError
	var number unix.Errno
	return !errors.As(err, &path) && !errors.As(err, &number)
}

// FormatKey is where the format of the data directory is stored.
const FormatKey = "format"

// CheckFormat refuses data of a format that is newer than known, and marks new data.
func (s *Store) CheckFormat(known int) error {
	text, err := s.Get([]byte(FormatKey))
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w; move it away, and this peer joins its group again as a new one", err)
	}
	if err != nil || len(text) == 0 {
		return s.Disk.Set([]byte(FormatKey), []byte(strconv.Itoa(known)))
	}
	if v, err := strconv.Atoi(string(text)); err != nil || v > known {
		return fmt.Errorf("it was written by a newer version (format %s, this program knows up to %d); install "+
			"that version here", text, known)
	}
	return nil
}

// HasState tells a peer that has been in a group from a new one. A peer that was killed while it began a group has
// nothing of it but the term 1, in which nobody votes; it forgets that, or it would be the member of no group for ever.
func (s *Store) HasState() (bool, error) {
	known, err := hraft.HasExistingState(s, s, s.Snaps)
	if err != nil || !known {
		return false, err
	}
	p, err := s.Position()
	if err != nil || p.Last > 0 || p.Term != 1 {
		return true, err
	}
	return false, s.Disk.Set([]byte(termKey), number(0))
}

// persist stores terms and votes. hashicorp/raft panics if a term cannot be stored, but a full disk must
// neither kill the process nor let it go on without having stored the term. So this blocks raft's main loop
// until the disk takes it: a peer that cannot write does not vote, answer or hold, and takes part again by
// itself when it can.
func (s *Store) persist(write func() error) error {
	for {
		err := s.busy(write)
		if err == nil {
			return nil
		}
		s.note(err)
		select {
		case <-s.stop:
			// Shutting down: returning an error would panic, returning nil would be a lie. End raft's
			// goroutine; its defers run.
			runtime.Goexit()
		case <-time.After(retryEvery):
		}
	}
}

// StoreLogs fails without harm: a leader steps down, a follower says no.
func (s *Store) StoreLogs(logs []*hraft.Log) error {
	err := s.busy(func() error { return s.Disk.StoreLogs(logs) })
	if err != nil {
		s.note(err)
	}
	if s.OnGrown != nil {
		s.OnGrown()
	}
	return err
}

// StoreLog is StoreLogs of one.
func (s *Store) StoreLog(log *hraft.Log) error { return s.StoreLogs([]*hraft.Log{log}) }

// Stop ends a write that waits for the disk.
func (s *Store) Stop() { close(s.stop) }

// Values of this program's own, for SetOwn and Own.
const (
	RosterKey    = "roster"    // the peers: one whose file lists nobody has to find them after a restart
	HeartbeatKey = "heartbeat" // with which this peer last took part
	StretchKey   = "stretch"   // the heartbeat that this peer is to take part with instead of another
	DiskKey      = "disk"      // tells this data directory from others; a copy has the same
	BootsKey     = "boots"     // how often it was opened to take part
	ReachedKey   = "reached"   // what the others have told of their disks
	WithheldKey  = "withheld"  // what others say that this disk had reached before it went backwards
	FloorKey     = "floor"     // the term up to which no vote is given, after that
	SettledKey   = "settled"   // the index up to which a leader had brought it then
	FoundedKey   = "founded"   // how this peer came into its group: FoundedAlone, Joined, or nothing
	ReplacesKey  = "replaces"  // the group that was recovered as the one in this directory
	AsideKey     = "aside"     // why the content has to be put aside at the next start
	roomKey      = "room"      // nothing: it is written to see whether it can be
)

// Values of FoundedKey: the group is this peer's own, or it was taken into one.
const (
	FoundedAlone = "alone"
	Joined       = "joined"
)

// SetOwn stores a value of this program's own, once: an error is reported, and not waited for.
func (s *Store) SetOwn(key, value string) error { return s.Disk.Set([]byte(key), []byte(value)) }

// Own is what SetOwn has stored, or "".
func (s *Store) Own(key string) string {
	value, err := s.Disk.Get([]byte(key))
	if err != nil {
		return "" // none is stored
	}
	return string(value)
}

// note keeps the error of a write until there is room again.
func (s *Store) note(err error) {
	s.mu.Lock()
	first := s.problem == nil
	s.problem = err
	s.problems++
	s.mu.Unlock()
	if !first {
		return
	}
	s.tell(err)
	go s.awaitRoom()
}

func (s *Store) awaitRoom() {
	for {
		select {
		case <-s.stop:
			return
		case <-time.After(retryEvery):
		}
		s.mu.Lock()
		before := s.problems
		s.mu.Unlock()
		if s.hasRoom() != nil {
			continue
		}
		s.mu.Lock()
		ended := s.problems == before
		if ended {
			s.problem = nil
		}
		s.mu.Unlock()
		if ended {
			s.tell(nil)
			return
		}
	}
}

// tryRoom writes to the directory as much as a busy peer does, and to the database.
func (s *Store) tryRoom() (err error) {
	path := filepath.Join(s.dir, roomFile)
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, roomBytes))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return s.SetOwn(roomKey, strconv.Itoa(roomBytes))
}

func (s *Store) tell(err error) {
	if s.OnError != nil {
		s.OnError(err)
	}
}

// Trouble is what keeps the peer from writing, or nil.
func (s *Store) Trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

var _ io.Closer = (*Store)(nil)

// Free says how much room is left on the disk of dir, in words for people.
func Free(dir string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "unknown: " + err.Error()
	}
	const mib = 1 << 20
	block := uint64(fs.Bsize)
	return fmt.Sprintf("%d of %d MiB, %d of %d files", fs.Bavail*block/mib, fs.Blocks*block/mib, fs.Ffree, fs.Files)
}
