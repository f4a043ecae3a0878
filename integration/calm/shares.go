package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// A slice is a control group that gives CPU time to processes, of version 1 or 2.
type slice struct {
	dir string
	v2  bool
}

// milliShares is the weight (cpu.shares) that a kubelet gives for a request of that many thousandths of a core.
func milliShares(milli int) int { return max(2, milli*1024/1000) }

// newSlice makes a control group for slices. Close removes it.
func newSlice(name string) (*slice, error) {
	const v1, v2 = "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(v1, "cpu.shares")); err == nil {
		s := &slice{dir: filepath.Join(v1, name)}
		return s, os.Mkdir(s.dir, 0o755)
	}
	s := &slice{dir: filepath.Join(v2, name), v2: true}
	if err := os.WriteFile(filepath.Join(v2, "cgroup.subtree_control"), []byte("+cpu"), 0); err != nil {
		return nil, fmt.Errorf("no control groups for CPU time: %w", err)
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	return s, os.WriteFile(filepath.Join(s.dir, "cgroup.subtree_control"), []byte("+cpu"), 0)
}

// add makes a slice within s that has the weight of milli thousandths of a core, and at most limit of them; 0 is no limit.
func (s *slice) add(name string, milli, limit int) (*slice, error) {
	in := &slice{dir: filepath.Join(s.dir, name), v2: s.v2}
	if err := os.Mkdir(in.dir, 0o755); err != nil {
		return nil, err
	}
	const period = 100_000 // µs, the kubelet's
	shares := milliShares(milli)
	if s.v2 {
		// The kubelet's formula, KEP-2254.
		err := in.set("cpu.weight", strconv.Itoa(1+(shares-2)*9999/262142))
		if err == nil && limit > 0 {
			err = in.set("cpu.max", fmt.Sprint(limit*period/1000, " ", period))
		}
		return in, err
	}
	err := in.set("cpu.shares", strconv.Itoa(shares))
	if err == nil && limit > 0 {
		err = errors.Join(in.set("cpu.cfs_period_us", strconv.Itoa(period)),
			in.set("cpu.cfs_quota_us", strconv.Itoa(limit*period/1000)))
	}
	return in, err
}

func (s *slice) set(file, value string) error {
	return os.WriteFile(filepath.Join(s.dir, file), []byte(value), 0)
}

// take moves a process into the slice, with all its threads.
func (s *slice) take(pid int) error { return s.set("cgroup.procs", strconv.Itoa(pid)) }

// remove removes the slice. Its processes must have ended, and what is within it must be gone.
func (s *slice) remove() error {
	err := syscall.Rmdir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
