package store

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

func newDatabase(t *testing.T) (*database, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raft.db")
	d, err := openDatabase(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func TestDatabaseLog(t *testing.T) {
	d, path := newDatabase(t)
	ends := func(first, last uint64) {
		t.Helper()
		f, err := d.FirstIndex()
		l, err2 := d.LastIndex()
		if err := errors.Join(err, err2); err != nil || f != first || l != last {
			t.Errorf("from %d to %d, %v; want %d to %d", f, l, err, first, last)
		}
	}
	ends(0, 0)
	want := make(map[uint64]*hraft.Log)
	var logs []*hraft.Log
	for i := uint64(1); i <= 300; i++ {
		want[i] = &hraft.Log{
			Index: i, Term: i / 10, Type: hraft.LogCommand, Data: fmt.Append(nil, "entry ", i), Extensions: []byte{byte(i)},
			AppendedAt: time.Unix(1_700_000_000+int64(i), 123_456_789).UTC(),
		}
		logs = append(logs, want[i])
	}
	if err := d.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	ends(1, 300)
	for _, r := range [][2]uint64{{1, 90}, {250, 300}, {400, 500}, {20, 30}} {
		if err := d.DeleteRange(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
		for i := r[0]; i <= r[1]; i++ {
			delete(want, i)
		}
	}
	ends(91, 249)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if d, err = openDatabase(path, nil); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ends(91, 249)
	for i := uint64(0); i <= 301; i++ {
		var got hraft.Log
		err := d.GetLog(i, &got)
		if want[i] == nil {
			if err != hraft.ErrLogNotFound {
				t.Errorf("%d: %v", i, err)
			}
			continue
		}
		if diff := cmp.Diff(*want[i], got); err != nil || diff != "" {
			t.Errorf("%d: %v %s", i, err, diff)
		}
	}
}

func TestDatabaseValues(t *testing.T) {
	d, _ := newDatabase(t)
	_, err := d.Get([]byte("a"))
	if err != errNoValue || err.Error() != "not found" { // hashicorp/raft compares the text
		t.Error(err)
	}
	for _, want := range []string{"x", "another"} {
		if err := d.Set([]byte("a"), []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Get([]byte("a")); string(got) != want || err != nil {
			t.Error(got, err)
		}
	}
}

// Entries are written as hashicorp/raft-boltdb 2.3.1 wrote them, so that an older version of this program can read
// them.
func TestDatabaseFormat(t *testing.T) {
	d, _ := newDatabase(t)
	err := d.StoreLogs([]*hraft.Log{{
		Index: 7, Term: 3, Type: hraft.LogConfiguration, Data: []byte("data"), Extensions: []byte{1},
		AppendedAt: time.Unix(1_700_000_000, 123_456_789).UTC(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	const want = "86aa417070656e6465644174af010000000edce5e800075bcd15ffffa444617461a464617461aa457874656e73696f6e73a1" +
		"01a5496e64657807a45465726d03a45479706505"
	err = d.db.View(func(tx *bbolt.Tx) error {
		if got := hex.EncodeToString(tx.Bucket([]byte("logs")).Get([]byte{0, 0, 0, 0, 0, 0, 0, 7})); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
