package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
)

// TestRoom: what tries the room leaves nothing behind, and tells a full disk.
func TestRoom(t *testing.T) {
	s, err := Open(t.TempDir(), nil, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.tryRoom(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, roomFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was written is still there: %v", err)
	}
	s.dir = "/dev/full"
	if err := s.tryRoom(); err == nil {
		t.Error("there is room where there cannot be")
	}
}

// TestTermIsNeverForgotten: a full disk makes raft wait, not go on.
func TestTermIsNeverForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		full := errors.New("no space left on device")
		tries, told := 0, []error{}
		room := full
		s := &Store{stop: make(chan struct{}), hasRoom: func() error {
			mu.Lock()
			defer mu.Unlock()
			return room
		}, OnError: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, err)
		}}
		write := func() error {
			mu.Lock()
			defer mu.Unlock()
			tries++
			if tries < 10 {
				return full
			}
			return nil
		}
		if err := s.persist(write); err != nil {
			t.Fatal(err)
		}
		if s.Trouble() != full {
			t.Errorf("trouble %v: what was stored fitted into the last room, and the disk is as full as before", s.Trouble())
		}
		mu.Lock()
		room = nil
		mu.Unlock()
		time.Sleep(2 * retryEvery)
		synctest.Wait()
		if tries != 10 || len(told) != 2 || told[0] != full || told[1] != nil {
			t.Errorf("%d tries, told %v: want 10 tries, and the trouble and its end told once each", tries, told)
		}
		if s.Trouble() != nil {
			t.Errorf("trouble %v after it has ended", s.Trouble())
		}

		// While the disk stays full, shutting down ends the caller without an answer.
		answered, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			s.persist(func() error { return full })
			answered = true
		}()
		synctest.Wait()
		if s.Trouble() != full {
			t.Errorf("trouble %v, want %v", s.Trouble(), full)
		}
		s.Stop()
		<-ended
		if answered {
			t.Error("a term that is not on the disk was reported as stored")
		}
	})
}

// TestKilledWhileItBeganAGroup: term 1 without a log is of a group that never began. In a later term a peer may have
// voted.
func TestKilledWhileItBeganAGroup(t *testing.T) {
	for name, tt := range map[string]struct {
		term  uint64
		log   bool
		known bool
	}{
		"new": {}, "killed": {term: 1}, "bootstrapped": {1, true, true}, "voted": {term: 2, known: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(t.TempDir(), nil, hclog.NewNullLogger())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if tt.term > 0 {
				err = s.SetUint64([]byte(termKey), tt.term)
			}
			if tt.log {
				err = errors.Join(err, s.StoreLog(&hraft.Log{Index: 1, Term: 1, Type: hraft.LogNoop}))
			}
			known, err2 := s.HasState()
			if err != nil || err2 != nil || known != tt.known {
				t.Errorf("it has state: %v, %v, %v", known, err, err2)
			}
			if again, err := hraft.HasExistingState(s, s, s.Snaps); err != nil || again != tt.known {
				t.Errorf("raft finds state: %v, %v", again, err)
			}
		})
	}
}

// TestDamagedPages: whatever page of a database is gone, or is not what it was, is an error and no crash.
func TestDamagedPages(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "raft.db")
	db, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	var logs []*hraft.Log
	for i := range uint64(100) {
		logs = append(logs, &hraft.Log{Index: i + 1, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, 100)})
	}
	if err := db.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte(FormatKey), []byte("1")); err != nil {
		t.Fatal(err)
	}
	db.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	refused := 0
	try := func(what string, content []byte) {
		dir := t.TempDir() // bbolt forgets to unlock a file that it has panicked about
		if err := os.WriteFile(filepath.Join(dir, "raft.db"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir, nil, hclog.NewNullLogger())
		if err != nil {
			if refused++; !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "move it away") {
				t.Errorf("%s: %v", what, err)
			}
			return
		}
		defer s.Close()
		s.CheckFormat(1)
		s.HasState()
		s.FirstIndex()
		s.LastIndex()
		for i := range uint64(100) {
			s.GetLog(i+1, new(hraft.Log))
		}
		s.SetOwn("key", "value")
		s.StoreLog(&hraft.Log{Index: 101})
		s.DeleteRange(1, 100)
	}
	for at := page; at < len(good); at += page {
		try(fmt.Sprint("cut at ", at), good[:at])
		for what, b := range map[string]byte{"zeros": 0, "ones": 0xff} {
			bad := slices.Clone(good)
			copy(bad[at:], bytes.Repeat([]byte{b}, page))
			try(fmt.Sprint(what, " at ", at), bad)
		}
	}
	try("a piece of a page", good[:page/2])
	if refused == 0 {
		t.Error("nothing is refused")
	}
}

// TestDamagedNumber: a disk that has lost bytes is an error, and no crash.
func TestDamagedNumber(t *testing.T) {
	s, err := Open(t.TempDir(), nil, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, stored := range []string{"", "1234567", "123456789"} {
		if err := s.Disk.Set([]byte(termKey), []byte(stored)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.GetUint64([]byte(termKey)); err == nil || !strings.Contains(err.Error(), "CurrentTerm is damaged") {
			t.Errorf("%q is read as %d, %v", stored, n, err)
		}
	}
}
