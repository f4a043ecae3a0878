package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallDisk gives node i a data directory on a small file system of its own.
func (tr *trial) smallDisk(t *testing.T, i int) (dir string) {
	t.Helper()
	dir = tr.app.Data(i)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("no tmpfs can be mounted here: ", err)
	}
	t.Cleanup(func() {
		tr.app.Kill(i) // or the mount is busy
		<-tr.app.Process(i).Done()
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all room at dir, and returns the file that has it.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return f.Name()
}

// TestFullDisk: a peer does not start on a full disk, and says what to do. When its disk
// fills while it runs, it neither holds nor votes. Once there is room again, it takes
// part without a restart.
func TestFullDisk(t *testing.T) {
	tr := gather(t)
	dir := tr.smallDisk(t, 2)
	filler := fill(t, dir)
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tr.app.Process(2).Done():
	case <-patient(t).Done():
		t.Fatal("a peer runs on a full disk")
	}
	if log := tr.app.Log(); !strings.Contains(log, "dataDir "+dir+" is full") || !strings.Contains(log, "free some room") {
		t.Error("a peer that does not start on a full disk does not say so")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := tr.app.Start(2); err != nil {
		t.Fatal(err)
	}
	tr.members0(t, 0, 1, 2)
	tr.say(t, 0, "pin", tr.Nodes[2].Name)
	tr.holder(t, 2)

	// The holder's disk fills. Its next entry is one too many.
	filler = fill(t, dir)
	troubled := func(ctx context.Context) bool {
		s, err := tr.app.Status(ctx, 2)
		return err == nil && strings.Contains(strings.Join(s.NotReadyTexts(), " "), "cannot write to the data directory")
	}
	weight := 10
	tr.until(t, "the trouble", func(ctx context.Context) bool {
		weight++
		tr.app.Say(ctx, 0, "backends", "weight", tr.Addr(0).String(),
			strconv.Itoa(weight)) // some fit into what the database has
		fill(t, dir)
		return troubled(ctx)
	})
	h := tr.holder(t, 0, 1)
	full := time.Now()
	tr.say(t, h, "backends", "weight", tr.Addr(0).String(), "5")
	tr.silent(t, 2, full)

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	tr.until(t, "the peer to take part again", func(ctx context.Context) bool {
		s, err := tr.app.Status(ctx, 2)
		return err == nil && len(s.NotReady) == 0 && s.LoadBalancers[0].Backends[0].Weight == 5
	})
	tr.holder(t, 2) // it is pinned
	tr.oneAnswer(t)
}
