package store

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// hashicorp/raft stores a vote as two values, first the term, then the candidate. Each costs a transaction,
// so two writes to disk, while nobody answers for the address. Here the term waits for the candidate, and
// both go to disk as one value before the vote is given. A crash between the two leaves the former vote, as
// if this one had never been considered.
const (
	voteKey       = "Vote"         // term (8 bytes), candidate
	voteTermKey   = "LastVoteTerm" // hashicorp/raft's names, raft.go
	voteCandidKey = "LastVoteCand"
	termKey       = "CurrentTerm"
)

// vote is the vote on disk, ok is false if there is none in this form.
func (s *Store) vote() (term uint64, candidate []byte, ok bool, err error) {
	v, err := s.Disk.Get([]byte(voteKey))
	switch {
	case errors.Is(err, errNoValue):
		return 0, nil, false, nil
	case err != nil:
		return 0, nil, false, err
	case len(v) < 8:
		return 0, nil, false, errors.New("the stored vote is damaged")
	}
	return binary.BigEndian.Uint64(v), v[8:], true, nil
}

// SetUint64 stores a term. The term of a vote waits for the candidate.
func (s *Store) SetUint64(key []byte, val uint64) error {
	if string(key) == voteTermKey {
		s.voteTerm = val
		return nil
	}
	return s.persist(func() error { return s.Disk.Set(key, number(val)) })
}

// Set stores whom the vote of the term just set goes to.
func (s *Store) Set(key, val []byte) error {
	if string(key) == voteCandidKey {
		s.voting <- struct{}{}
		defer func() { <-s.voting }()
		key, val = []byte(voteKey), append(binary.BigEndian.AppendUint64(nil, s.voteTerm), val...)
	}
	return s.persist(func() error { return s.Disk.Set(key, val) })
}

// GetUint64 reads what SetUint64 has stored.
func (s *Store) GetUint64(key []byte) (uint64, error) {
	if string(key) == voteTermKey {
		if term, _, ok, err := s.vote(); ok || err != nil {
			return term, err
		}
	}
	value, err := s.Disk.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("the stored %s is damaged", key)
	}
	return binary.BigEndian.Uint64(value), nil
}

// Get reads what Set has stored.
func (s *Store) Get(key []byte) ([]byte, error) {
	if string(key) == voteCandidKey {
		if _, candidate, ok, err := s.vote(); ok || err != nil {
			return candidate, err
		}
	}
	return s.Disk.Get(key)
}

// nobody is a candidate that there is not.
const nobody = "-"

// Forgo stores a vote for nobody in term, unless there is one in a later or the same term: raft then gives no
// vote up to term. The caller sees to it that raft votes in no term up to this one meanwhile.
func (s *Store) Forgo(term uint64) error {
	s.voting <- struct{}{}
	defer func() { <-s.voting }()
	if at, err := s.GetUint64([]byte(voteTermKey)); err == nil && at >= term {
		return nil
	}
	return s.Disk.Set([]byte(voteKey), append(binary.BigEndian.AppendUint64(nil, term), nobody...))
}
