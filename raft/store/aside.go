package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	hraft "github.com/hashicorp/raft"
)

// Position is where the disk of a peer that does not run raft yet stands.
type Position struct {
	Term, Last uint64
	// Members are the ids in the newest configuration that the log or the last snapshot has.
	Members []string
}

// Position reads where the disk stands.
func (s *Store) Position() (p Position, err error) {
	if p.Term, err = s.GetUint64([]byte(termKey)); err != nil && err.Error() != "not found" {
		return p, err
	}
	var members hraft.Configuration
	snaps, err := s.Snaps.List()
	if err != nil {
		return p, err
	}
	if len(snaps) > 0 {
		p.Last, members = snaps[0].Index, snaps[0].Configuration
	}
	first, err := s.FirstIndex()
	if err != nil {
		return p, err
	}
	last, err := s.LastIndex()
	if err != nil {
		return p, err
	}
	for i := max(first, 1); i <= last; i++ {
		var l hraft.Log
		if err := s.GetLog(i, &l); err != nil {
			return p, err
		}
		if l.Type == hraft.LogConfiguration && i > p.Last {
			members = hraft.DecodeConfiguration(l.Data)
		}
	}
	p.Last = max(p.Last, last)
	for _, m := range members.Servers {
		p.Members = append(p.Members, string(m.ID))
	}
	return p, nil
}

// Boot counts one more start of the data directory and returns the number, 0 if it cannot be stored.
func (s *Store) Boot() uint64 {
	n, _ := strconv.ParseUint(s.Own(BootsKey), 10, 64)
	n++
	if s.SetOwn(BootsKey, strconv.FormatUint(n, 10)) != nil {
		return 0
	}
	return n
}

// snapshots is hashicorp/raft's name of the directory with the snapshots.
const snapshots = "snapshots"

// PutAside moves the content of a data directory that is marked with AsideKey into a directory beside it, so
// that the peer begins as a new one. To is where it is now, "" if it was not marked. The store is closed.
func (s *Store) PutAside() (to string, err error) {
	if s.Own(AsideKey) == "" {
		return "", nil
	}
	to = filepath.Join(s.dir, "aside-"+time.Now().UTC().Format("20060102T150405.000Z"))
	if err := s.Close(); err != nil {
		return "", err
	}
	// The mark is in the database, which therefore goes last: after a crash this is done again.
	err = os.Mkdir(to, 0o700)
	for _, name := range []string{snapshots, "raft.db"} {
		if err == nil {
			err = os.Rename(filepath.Join(s.dir, name), filepath.Join(to, name))
		}
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return "", fmt.Errorf("putting the data of a former group aside: %w; make %s writable", err, s.dir)
	}
	return to, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
