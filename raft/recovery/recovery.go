package recovery

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"appliance/raft/raftlog"
	"appliance/raft/settings"
	"appliance/raft/store"

	"github.com/hashicorp/go-hclog"
	hraft "github.com/hashicorp/raft"
)

// An Outcome tells what Run has done.
type Outcome struct {
	ID   string
	Addr netip.AddrPort
	// Former are the members that the group had, this one included.
	Former []string
	// Copy is the directory with the data as they were before.
	Copy string
}

// Run makes the peer id the only member of its group, offline, on its data directory: for the case that a
// majority is gone for good. Nobody can prove that it is: if the others live, or come back with their data,
// there are two groups. The group gets another name, so that such a peer is told as soon as it can reach this
// one. Run copies the directory first.
func Run(dir, id string, addr netip.AddrPort, log *slog.Logger) (Outcome, error) {
	rec := Outcome{ID: id, Addr: addr}
	if _, err := os.Stat(filepath.Join(dir, "raft.db")); errors.Is(err, fs.ErrNotExist) {
		return rec, fmt.Errorf("%s has no group's data; run this on the peer that is left, with its --data-dir", dir)
	}
	hlog := raftlog.New(log)
	if err := vacant(dir, hlog); err != nil {
		return rec, err
	}
	rec.Copy = fmt.Sprintf("%s.before-recovery-%s", strings.TrimRight(dir, "/"),
		time.Now().UTC().Format("20060102T150405Z"))
	if err := copyDir(dir, rec.Copy); err != nil {
		return rec, fmt.Errorf("copy of %s: %w; make room at %s", dir, err, rec.Copy)
	}
	s, err := store.Open(dir, nil, hlog)
	if err != nil {
		return rec, err
	}
	defer s.Close()
	conf := hraft.DefaultConfig()
	conf.LocalID = hraft.ServerID(id)
	conf.Logger = hlog
	_, trans := hraft.NewInmemTransport("") // only its encoding of addresses is used
	if known, err := s.HasState(); err != nil || !known {
		return rec, fmt.Errorf("%s has no group's data (%v); run this on the peer that is left", dir, err)
	}
	// This reads the data as raft will do, to see who the members were.
	was, err := hraft.GetConfiguration(conf, settings.New(func() {}), s, s, s.Snaps, trans)
	if err != nil {
		return rec, fmt.Errorf("group state in %s: %w", dir, err)
	}
	member := false
	for _, m := range was.Servers {
		rec.Former = append(rec.Former, string(m.ID))
		member = member || string(m.ID) == id
	}
	slices.Sort(rec.Former)
	if !member {
		return rec, fmt.Errorf("%s is the data of another peer: %q is none of its members (%s); give the right "+
			"one with --id", dir, id, strings.Join(rec.Former, ", "))
	}
	alone := &survivor{FSM: settings.New(func() {}), id: id, name: rand.Text(), former: s.Own(settings.ClusterKey)}
	only := hraft.Configuration{Servers: []hraft.Server{{
		Suffrage: hraft.Voter, ID: hraft.ServerID(id), Address: hraft.ServerAddress(addr.String()),
	}}}
	if err := hraft.RecoverCluster(conf, alone, s, s, s.Snaps, trans, only); err != nil {
		return rec, fmt.Errorf("recovering the group in %s: %w; the copy is in %s", dir, err, rec.Copy)
	}
	for key, value := range map[string]string{settings.ClusterKey: alone.name, store.RosterKey: "[]",
		store.ReplacesKey: alone.former, store.FoundedKey: "", store.ReachedKey: ""} {
		if err := s.SetOwn(key, value); err != nil {
			return rec, fmt.Errorf("recovering the group in %s: %w; the copy is in %s", dir, err, rec.Copy)
		}
	}
	return rec, nil
}

// vacant returns an error if a process uses the data directory.
func vacant(dir string, log hclog.Logger) error {
	s, err := store.Open(dir, nil, log)
	if err != nil {
		return err
	}
	return s.Close()
}

// survivor is the settings of a group of which only one member is left.
type survivor struct {
	*settings.FSM
	id, name, former string
}

// Snapshot implements hraft.FSM. It is what the recovered group begins with.
func (s *survivor) Snapshot() (hraft.FSMSnapshot, error) {
	s.Edit(func(values map[string]string) {
		maps.DeleteFunc(values, func(key, _ string) bool {
			id, member := strings.CutPrefix(key, settings.MemberPrefix)
			return member && id != s.id || key == settings.PinKey ||
				strings.HasPrefix(key, settings.RemovedPrefix) || strings.HasPrefix(key, settings.DrainPrefix)
		})
		if was := values[settings.ClusterKey]; was != "" {
			s.former = was
		}
		values[settings.ClusterKey], values[settings.ReplacesKey] = s.name, s.former
	})
	return s.FSM.Snapshot()
}

// copyDir copies regular files and directories, which is all that there are.
func copyDir(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o600)
	})
}
