package sysctl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	procSys        = "/proc/sys"
	ipv4Forwarding = "net/ipv4/ip_forward"
	ipv6Forwarding = "net/ipv6/conf/all/forwarding"
)

// A Parameter is a kernel parameter and the value that it should have.
type Parameter struct {
	// Key is the path below /proc/sys. It has slashes, because the name of an interface may have dots.
	Key, Value string
	// Why ends the sentence "KEY cannot be set, but …" in errors.
	Why string
	// Module is the kernel module that has the parameter, and must be loaded at boot; empty for what is built in.
	Module string
	// Otherwise says what to do with a kernel that has no such parameter.
	Otherwise string
}

// Name is the key as sysctl(8) writes it: slashes are dots, and dots are slashes.
func (p Parameter) Name() string { return strings.NewReplacer("/", ".", ".", "/").Replace(p.Key) }

// Line is what sysctl.conf(5) needs to set the parameter at boot.
func (p Parameter) Line() string { return p.Name() + " = " + p.Value }

// fulfilled reports whether a value that the kernel has will do. Every value but 0 turns forwarding on.
func (p Parameter) fulfilled(have string) bool {
	if p.Key == ipv4Forwarding || p.Key == ipv6Forwarding {
		return have != "0"
	}
	return have == p.Value
}

// Forwarding lists what lets packets of these families pass through this host.
//
// A host that begins to forward IPv6 drops the default routes that it has from router advertisements, and ignores
// advertisements from then on, wherever accept_ra is 1 (Documentation/networking/ip-sysctl.rst). Therefore Set and
// Check take care of accept_ra by themselves: before they turn IPv6 forwarding on, every interface that listens to
// advertisements (1) is made to go on listening (2). An interface that does not listen (0) stays as it is. To change
// only the interfaces that have such a route now would be less safe: one that gets its first advertisement later, or
// has only its addresses from them (RFC 4862, section 5.5.3), would lose what it had.
func Forwarding(ip4, ip6 bool, why string) (need []Parameter) {
	if ip4 {
		need = append(need, Parameter{Key: ipv4Forwarding, Value: "1", Why: why})
	}
	if ip6 {
		need = append(need, Parameter{Key: ipv6Forwarding, Value: "1", Why: why,
			Otherwise: "take a kernel with IPv6, not started with ipv6.disable=1"})
	}
	return need
}

// A Tree is the parameters below one directory, with what was changed there. The zero Tree is /proc/sys, unchanged.
// Read and Check may be called by any goroutine; the rest belongs to one.
type Tree struct {
	// Root takes the place of /proc/sys, which is read-only in a container: the host's may be mounted elsewhere.
	Root    string
	changed []Parameter // in the order of the changes, with the values from before
}

// Read returns the value of a parameter without surrounding space.
func (t *Tree) Read(key string) (string, error) {
	b, err := os.ReadFile(t.file(key))
	if err != nil {
		return "", fmt.Errorf("read kernel parameter %s: %w", Parameter{Key: key}.Name(), err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Check returns an error for every parameter that Set could not give its value. It changes nothing.
func (t *Tree) Check(need ...Parameter) error {
	var errs []error
	for _, p := range need {
		missing, err := t.missing(p, nil)
		errs = append(errs, err)
		for _, m := range missing {
			// Opening for writing fails on a read-only mount and without the right to write.
			f, err := os.OpenFile(t.file(m.Key), os.O_WRONLY, 0)
			if err != nil {
				errs = append(errs, m.refused(err))
				continue
			}
			f.Close()
		}
	}
	return errors.Join(errs...)
}

// Set gives each parameter its value, unless it has it, and goes on after an error. repaired counts those that an
// earlier call had set and that somebody else set back.
func (t *Tree) Set(need ...Parameter) (repaired int, err error) {
	var errs []error
	for _, p := range need {
		missing, err := t.missing(p, t.changed)
		errs = append(errs, err)
		for _, m := range missing {
			if err := t.write(m.Key, m.Value); err != nil {
				errs = append(errs, m.refused(err))
				break // without accept_ra, forwarding would cost routes
			}
			if contains(t.changed, m.Key) {
				repaired++
				continue
			}
			t.changed = append(t.changed, Parameter{Key: m.Key, Value: m.have})
		}
	}
	return repaired, errors.Join(errs...)
}

// Restore puts back every parameter that Set has changed, the last change first.
func (t *Tree) Restore() error { return t.RestoreFunc(func(string) bool { return true }) }

// RestoreFunc puts back the changed parameters whose keys satisfy f, the last change first. One that could not be put
// back is tried again by the next call.
func (t *Tree) RestoreFunc(f func(key string) bool) error {
	var errs []error
	for i, p := range slices.Backward(t.changed) {
		if !f(p.Key) {
			continue
		}
		// An interface that is gone has taken its parameters along.
		if err := t.write(p.Key, p.Value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("put %s back to %s: %w; run sysctl -w %s=%s",
				p.Name(), p.Value, err, p.Name(), p.Value))
			continue
		}
		t.changed = slices.Delete(t.changed, i, i+1)
	}
	return errors.Join(errs...)
}

func (t *Tree) file(key string) string { return filepath.Join(cmp.Or(t.Root, procSys), key) }

func (t *Tree) write(key, value string) error { return os.WriteFile(t.file(key), []byte(value), 0) }

func contains(list []Parameter, key string) bool {
	return slices.ContainsFunc(list, func(p Parameter) bool { return p.Key == key })
}

// lacking is a parameter that has another value than it should.
type lacking struct {
	Parameter
	have string
}

// missing lists what must be written for p, in this order. changed is what was written before.
func (t *Tree) missing(p Parameter, changed []Parameter) (list []lacking, err error) {
	have, err := t.Read(p.Key)
	if errors.Is(err, fs.ErrNotExist) && p.Otherwise != "" {
		return nil, fmt.Errorf("the kernel has no %s, but %s; %s", p.Name(), p.Why, p.Otherwise)
	}
	if err != nil {
		return nil, err
	}
	off := !p.fulfilled(have)
	if p.Key == ipv6Forwarding {
		if list, err = t.listening(off, changed); err != nil {
			return nil, err
		}
	}
	if off {
		list = append(list, lacking{p, have})
	}
	return list, nil
}

// listening lists the interfaces that must be told to go on listening to router advertisements while this host
// forwards: all that listen, if forwarding is off. If it is on, these are only the ones that we had told and somebody
// changed.
func (t *Tree) listening(off bool, changed []Parameter) (list []lacking, err error) {
	files, err := filepath.Glob(t.file("net/ipv6/conf/*/accept_ra"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		key := "net/ipv6/conf/" + filepath.Base(filepath.Dir(file)) + "/accept_ra"
		if !off && !contains(changed, key) {
			continue
		}
		have, err := t.Read(key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // the interface went away
		case err != nil:
			return nil, err
		case have == "1":
			list = append(list, lacking{Parameter{Key: key, Value: "2",
				Why: "a host that forwards ignores router advertisements unless this is 2"}, have})
		}
	}
	return list, nil
}

// refused tells the operator what to write, and where.
func (l lacking) refused(err error) error {
	module := ""
	if l.Module != "" {
		module = fmt.Sprintf(", the line %q into /etc/modules-load.d/appliance.conf", l.Module)
	}
	return fmt.Errorf("%s is %s and cannot be set from here (%w), but %s; on the host, put the line %q into "+
		"/etc/sysctl.d/90-appliance.conf%s, and run sysctl --system", l.Name(), l.have, err, l.Why, l.Line(), module)
}
