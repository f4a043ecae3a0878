package raft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"

	hraft "github.com/hashicorp/raft"
)

// formatVersion is of commands and snapshots alike. A reader refuses what is
// newer than itself; a writer writes the oldest version that says it all.
const formatVersion = 1

// clusterKey is the setting that tells one group from another.
const clusterKey = "cluster"

// change is one replicated command: settings to set and to remove.
type change struct {
	Version int               `json:"v"`
	Set     map[string]string `json:"set,omitempty"`
	Remove  []string          `json:"remove,omitempty"`
	// Once sets only what is not set yet.
	Once bool `json:"once,omitempty"`
}

// settings is the state that the group replicates.
type settings struct {
	changed func()

	mu     sync.Mutex
	values map[string]string
	index  uint64 // of the last entry that values has, or 0
	broken error
}

type snapshotFile struct {
	Version  int               `json:"version"`
	Settings map[string]string `json:"settings"`
	Index    uint64            `json:"index,omitempty"`
}

func newSettings(changed func()) *settings {
	return &settings{changed: changed, values: make(map[string]string)}
}

func (s *settings) get(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[key]
}

func (s *settings) all() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values)
}

// err is why the state cannot be followed any further, or nil.
func (s *settings) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// Apply implements hraft.FSM.
func (s *settings) Apply(l *hraft.Log) any {
	err := s.apply(l.Data)
	s.reached(l.Index)
	return err
}

// StoreConfiguration implements hraft.ConfigurationStore: a change of members
// has an index as well.
func (s *settings) StoreConfiguration(index uint64, _ hraft.Configuration) { s.reached(index) }

func (s *settings) reached(index uint64) {
	s.mu.Lock()
	s.index = max(s.index, index)
	s.mu.Unlock()
	s.changed()
}

// at is the index of the last entry that the settings have.
func (s *settings) at() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

func (s *settings) apply(data []byte) error {
	var c change
	err := json.Unmarshal(data, &c)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return s.broken
	case err != nil:
		s.broken = fmt.Errorf("the group's log has an entry that is no change of settings (%w); is it another program's group?", err)
	case c.Version > formatVersion:
		s.broken = tooNew(c.Version)
	}
	if s.broken != nil {
		return s.broken
	}
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
	return fmt.Errorf("%w (format %d, this program knows up to %d); install that version here", errTooNew, version, formatVersion)
}

// Snapshot implements hraft.FSM.
func (s *settings) Snapshot() (hraft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, s.broken
	}
	data, err := json.Marshal(snapshotFile{Version: formatVersion, Settings: s.values, Index: s.index})
	return frozen(data), err
}

// Restore implements hraft.FSM.
func (s *settings) Restore(r io.ReadCloser) error {
	defer r.Close()
	defer s.changed()
	var f snapshotFile
	if err := json.NewDecoder(r).Decode(&f); err != nil {
		return fmt.Errorf("snapshot of the group's settings: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Version > formatVersion {
		s.broken = tooNew(f.Version)
		return s.broken
	}
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
