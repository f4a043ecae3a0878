package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"

	hraft "github.com/hashicorp/raft"
)

// FormatVersion is the format of commands and snapshots. A reader refuses a newer one; a writer writes the
// oldest version that can express everything.
const FormatVersion = 1

// A Command is one replicated command: settings to set and to remove.
type Command struct {
	Version int               `json:"v"`
	Set     map[string]string `json:"set,omitempty"`
	Remove  []string          `json:"remove,omitempty"`
	// Once sets only what is not set yet.
	Once bool `json:"once,omitempty"`
}

// FSM is the state that the group replicates.
type FSM struct {
	changed func()

	mu     sync.Mutex
	values map[string]string
	index  uint64 // of the last entry that values has, or 0
	edits  uint64 // how often values may have changed
	broken error
}

// A SnapshotFile is a snapshot on disk and on the wire.
type SnapshotFile struct {
	Version  int               `json:"version"`
	Settings map[string]string `json:"settings"`
	Index    uint64            `json:"index,omitempty"`
}

// New returns the settings of a new group. Changed is called after each change; it must not block.
func New(changed func()) *FSM {
	return &FSM{changed: changed, values: make(map[string]string)}
}

// Get is the value of key, or "".
func (s *FSM) Get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

// Edits is how often the settings may have changed: while it is the same, so are they.
func (s *FSM) Edits() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.edits
}

// All is a copy of the settings.
func (s *FSM) All() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values)
}

// Edit changes the settings outside of the log: only for a group that does not run.
func (s *FSM) Edit(edit func(values map[string]string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.edits++
	edit(s.values)
}

// Err is why later changes cannot be applied, or nil.
func (s *FSM) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// Apply implements hraft.FSM.
func (s *FSM) Apply(l *hraft.Log) any {
	err := s.apply(l.Data)
	s.reached(l.Index)
	return err
}

// StoreConfiguration implements hraft.ConfigurationStore: a change of members has an index as well.
func (s *FSM) StoreConfiguration(index uint64, _ hraft.Configuration) { s.reached(index) }

func (s *FSM) reached(index uint64) {
	s.mu.Lock()
	s.index = max(s.index, index)
	s.mu.Unlock()
	s.changed()
}

// Index is the index of the last entry that the settings have.
func (s *FSM) Index() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

func (s *FSM) apply(data []byte) error {
	var c Command
	err := json.Unmarshal(data, &c)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return s.broken
	case err != nil:
		s.broken = fmt.Errorf("the group's log has an entry that does not change settings (%w); is it another "+
			"program's group?", err)
	case c.Version > FormatVersion:
		s.broken = tooNew(c.Version)
	}
	if s.broken != nil {
		return s.broken
	}
	s.edits++
	for k, v := range c.Set {
		if _, ok := s.values[k]; ok && c.Once {
			continue
		}
		s.values[k] = v
	}
	for _, k := range c.Remove {
		delete(s.values, k)
	}
	return nil
}

var errTooNew = errors.New("the group's settings were written by a newer version")

func tooNew(version int) error {
	return fmt.Errorf("%w (format %d, this program knows up to %d); install that version here", errTooNew, version,
		FormatVersion)
}

// Snapshot implements hraft.FSM.
func (s *FSM) Snapshot() (hraft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, s.broken
	}
	data, err := json.Marshal(SnapshotFile{Version: FormatVersion, Settings: s.values, Index: s.index})
	return frozen(data), err
}

// Restore implements hraft.FSM.
func (s *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	defer s.changed()
	var f SnapshotFile
	if err := json.NewDecoder(r).Decode(&f); err != nil {
		return fmt.Errorf("snapshot of the group's settings: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Version > FormatVersion {
		s.broken = tooNew(f.Version)
		return s.broken
	}
	s.edits++
	s.broken, s.values, s.index = nil, f.Settings, f.Index
	if s.values == nil {
		s.values = make(map[string]string)
	}
	return nil
}

// frozen is a snapshot: the bytes to be written.
type frozen []byte

func (f frozen) Persist(sink hraft.SnapshotSink) error {
	if _, err := sink.Write(f); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (frozen) Release() {}
