package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/hashicorp/go-msgpack/v2/codec"
	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// database keeps log entries and values in a file of bbolt, in the form of hashicorp/raft-boltdb: data of either is
// read by the other. That module brings two archived databases and a second library of metrics with it.
type database struct{ db *bbolt.DB }

var (
	logsBucket   = []byte("logs") // by index, big-endian
	valuesBucket = []byte("conf")

	// errNoValue is the answer to an unknown key. hashicorp/raft knows it by its text.
	errNoValue = errors.New("not found")
)

func openDatabase(path string, options *bbolt.Options) (*database, error) {
	db, err := bbolt.Open(path, 0o600, options)
	if err != nil {
		return nil, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		file, err := os.Stat(path)
		if err == nil && file.Size() < tx.Size() {
			err = fmt.Errorf("%w: the file ends after %d of %d bytes", bolterrors.ErrInvalid, file.Size(), tx.Size())
		}
		return err
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(logsBucket)
		_, err2 := tx.CreateBucketIfNotExists(valuesBucket)
		return errors.Join(err, err2)
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return &database{db}, nil
}

func (d *database) Close() error { return d.db.Close() }

// guarded makes an error of what bbolt meets in a damaged file. It panics when a page makes no sense; and the kernel
// raises SIGBUS where the file is mapped and has no more pages.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w (%v)", ErrDamaged, r)
		}
	}()
	return f()
}

func (d *database) view(f func(tx *bbolt.Tx) error) error {
	return guarded(func() error { return d.db.View(f) })
}

func (d *database) update(f func(tx *bbolt.Tx) error) error {
	return guarded(func() error { return d.db.Update(f) })
}

// FirstIndex is the index of the oldest entry, 0 without one.
func (d *database) FirstIndex() (uint64, error) { return d.end((*bbolt.Cursor).First) }

// LastIndex is the index of the newest entry, 0 without one.
func (d *database) LastIndex() (uint64, error) { return d.end((*bbolt.Cursor).Last) }

func (d *database) end(of func(*bbolt.Cursor) (key, value []byte)) (index uint64, err error) {
	err = d.view(func(tx *bbolt.Tx) error {
		if key, _ := of(tx.Bucket(logsBucket).Cursor()); key != nil {
			index = binary.BigEndian.Uint64(key)
		}
		return nil
	})
	return index, err
}

// GetLog reads an entry.
func (d *database) GetLog(index uint64, log *hraft.Log) error {
	return d.view(func(tx *bbolt.Tx) error {
		value := tx.Bucket(logsBucket).Get(number(index))
		if value == nil {
			return hraft.ErrLogNotFound
		}
		return codec.NewDecoderBytes(value, new(codec.MsgpackHandle)).Decode(log)
	})
}

// StoreLogs writes entries, all of them or none.
func (d *database) StoreLogs(logs []*hraft.Log) error {
	return d.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(logsBucket)
		for _, log := range logs {
			var value bytes.Buffer
			// Times are written as raft-boltdb writes them, which every version can read.
			handle := new(codec.MsgpackHandle)
			handle.TimeNotBuiltin = true
			if err := codec.NewEncoder(&value, handle).Encode(log); err != nil {
				return err
			}
			if err := bucket.Put(number(log.Index), value.Bytes()); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteRange removes the entries from first to last, both included.
func (d *database) DeleteRange(first, last uint64) error {
	return d.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(logsBucket)
		var keys [][]byte // a cursor loses its place where it deletes
		cursor := bucket.Cursor()
		for at, _ := cursor.Seek(number(first)); at != nil && binary.BigEndian.Uint64(at) <= last; at, _ = cursor.Next() {
			keys = append(keys, at)
		}
		for _, k := range keys {
			if err := bucket.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set writes a value.
func (d *database) Set(key, value []byte) error {
	return d.update(func(tx *bbolt.Tx) error { return tx.Bucket(valuesBucket).Put(key, value) })
}

// Get reads a value; errNoValue means that there is none.
func (d *database) Get(key []byte) (value []byte, err error) {
	err = d.view(func(tx *bbolt.Tx) error {
		if value = bytes.Clone(tx.Bucket(valuesBucket).Get(key)); value == nil {
			return errNoValue
		}
		return nil
	})
	return value, err
}

// number is n as a key, in order, or as a value.
func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
