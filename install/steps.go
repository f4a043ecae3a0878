package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Where things are on a machine.
const (
	Program    = "/usr/local/bin/appliance"
	ConfigFile = "/etc/appliance/config.yaml"
	UnitFile   = "/etc/systemd/system/appliance.service"
	configDir  = "/etc/appliance"
	dataDir    = "/var/lib/appliance"
	// sysusersFile has systemd make the user, see sysusers.d(5).
	sysusersFile = "/etc/sysusers.d/appliance.conf"
)

// mark begins a unit that this package wrote, so that nobody else's is touched.
const mark = "# Written by `appliance install`; `appliance uninstall` removes it.\n"

// An Installation says what is installed.
type Installation struct {
	// Root is "/", or a directory that stands for it.
	Root string
	// From is the running program; it is copied to Program. Empty: a package has installed it, and its unit.
	From string
	// Config is the file's content, Unit the unit's.
	Config, Unit []byte
	// KeyFile gets the group key Key, if there is one.
	KeyFile string
	Key     []byte
	// Files are what the service reads.
	Files []string
	// AsRoot says that the service has no user of its own.
	AsRoot bool
	// DropIn is what a package's unit needs beside it.
	DropIn []byte
	// Accounts makes the user, where Root is this machine; nil otherwise.
	Accounts Accounts
	// Systemctl runs systemctl, if systemd runs here; nil otherwise.
	Systemctl func(args ...string) error
}

// A Step is one thing that is done. Text says what, in the present tense.
type Step struct {
	Text string
	run  func() error // nil: nothing is left to do
}

// Install lists the steps that put p on the machine. What is there already is kept.
func Install(p Installation) ([]Step, error) {
	h := host{p.Root}
	var steps []Step
	if !p.AsRoot {
		steps = append(steps, h.user(p.Accounts))
	}
	steps = append(steps, h.dir(configDir, 0o700), h.dir(dataDir, 0o700))
	if p.From != "" {
		program, err := os.ReadFile(p.From)
		if err != nil {
			return nil, err
		}
		unit := append([]byte(mark), p.Unit...)
		if have, err := h.read(UnitFile); err == nil && !bytes.HasPrefix(have, []byte(mark)) {
			return nil, fmt.Errorf("%s is not of `appliance install`; move it away, and run this again", UnitFile)
		}
		steps = append(steps, h.file(Program, program, 0o755, true), h.file(UnitFile, unit, 0o644, true))
	}
	if p.KeyFile != "" && p.Key != nil {
		steps = append(steps, h.file(p.KeyFile, p.Key, 0o600, false))
	}
	steps = append(steps, h.file(ConfigFile, p.Config, 0o600, false))
	if p.Accounts != nil && !p.AsRoot {
		// Not the data: an older version, which runs as root, may be writing there until the service starts anew.
		steps = append(steps, h.owned(p.Accounts, p.Files, "")...)
	}
	if p.From == "" {
		steps = append(steps, h.dropIn(p.DropIn)...)
	}
	if p.Systemctl != nil {
		steps = append(steps,
			Step{"systemctl daemon-reload", func() error { return p.Systemctl("daemon-reload") }},
			Step{"systemctl enable appliance.service", func() error { return p.Systemctl("enable", "appliance.service") }},
			// A start would leave the process of an older version running, or one that has read an older file.
			Step{"systemctl restart appliance.service, which starts it anew if it runs already",
				func() error { return p.Systemctl("restart", "appliance.service") }})
	}
	return steps, nil
}

// user makes the service's user, or has systemd make it when it starts the first time.
func (h host) user(accounts Accounts) Step {
	if accounts == nil {
		return h.file(sysusersFile, []byte(fmt.Sprintf("u %s - - %s\n", User, dataDir)), 0o644, true)
	}
	if _, _, ok := accounts.IDs(); ok {
		return Step{"keep user " + User, nil}
	}
	return Step{"add system user " + User, accounts.Make}
}

// Uninstall lists the steps that undo Install. With purge configuration, keys, the group's data and the service's user
// go too.
func Uninstall(root string, purge bool, accounts Accounts, systemctl func(args ...string) error) []Step {
	h := host{root}
	var steps []Step
	unit, err := h.read(UnitFile)
	ours := err == nil && bytes.HasPrefix(unit, []byte(mark))
	switch {
	case ours && systemctl != nil:
		steps = append(steps, Step{"systemctl disable --now appliance.service", func() error {
			return systemctl("disable",
				"--now", "appliance.service")
		}})
		fallthrough
	case ours:
		steps = append(steps, h.remove(UnitFile), h.remove(Program))
		steps = append(steps, h.dropIn(nil)...)
		if systemctl != nil {
			steps = append(steps, Step{"systemctl daemon-reload", func() error { return systemctl("daemon-reload") }})
		}
	case err == nil:
		steps = append(steps, Step{"keep " + UnitFile + ": it is not of `appliance install`", nil})
	default:
		steps = append(steps, Step{"nothing of `appliance install` is here: there is no " + UnitFile, nil})
	}
	if !purge {
		return append(steps, Step{"keep " + configDir + " and " + dataDir +
			"; --purge removes configuration, key and the group's data", nil})
	}
	steps = append(steps, h.removeAll(configDir), h.removeAll(dataDir))
	if accounts == nil {
		return append(steps, h.remove(sysusersFile))
	}
	if _, _, ok := accounts.IDs(); !ok {
		return append(steps, Step{"user " + User + " is gone already", nil})
	}
	return append(steps, Step{"remove user " + User + ", if `appliance install` or a package has made it", accounts.Remove})
}

// Run does the steps and prints each; with dry it only prints. The error names the step that failed.
func Run(w io.Writer, steps []Step, dry bool) error {
	for _, s := range steps {
		text := s.Text
		if dry && s.run != nil {
			text = "would " + text
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
		if dry || s.run == nil {
			continue
		}
		if err := s.run(); err != nil {
			return fmt.Errorf("%s: %w; correct that and run this again: what is done is kept", s.Text, err)
		}
	}
	return nil
}

// host is the file system that is changed.
type host struct{ root string }

func (h host) path(p string) string { return filepath.Join(h.root, p) }

func (h host) read(p string) ([]byte, error) { return os.ReadFile(h.path(p)) }

// dir makes a directory, or keeps it.
func (h host) dir(p string, mode fs.FileMode) Step {
	if info, err := os.Stat(h.path(p)); err == nil && info.IsDir() {
		return Step{"keep directory " + p, nil}
	}
	return Step{fmt.Sprintf("make directory %s (mode %04o)", p, mode), func() error {
		if err := os.MkdirAll(h.path(filepath.Dir(p)), 0o755); err != nil {
			return err
		}
		return os.Mkdir(h.path(p), mode)
	}}
}

// file writes a file. One that exists with other content is kept, unless it is to be replaced.
func (h host) file(p string, data []byte, mode fs.FileMode, replace bool) Step {
	verb := "write"
	if have, err := h.read(p); err == nil {
		switch {
		case bytes.Equal(have, data):
			return Step{"keep " + p, nil}
		case !replace:
			return Step{"keep " + p + ", which differs from what would be written", nil}
		}
		verb = "replace"
	}
	return Step{fmt.Sprintf("%s %s (mode %04o)", verb, p, mode), func() error { return h.put(p, data, mode) }}
}

// put writes a file as a whole: a program that runs cannot be overwritten, and a reader sees the old or the new one.
func (h host) put(p string, data []byte, mode fs.FileMode) (err error) {
	to := h.path(p)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".appliance-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), to)
}

func (h host) remove(p string) Step {
	if _, err := os.Lstat(h.path(p)); errors.Is(err, fs.ErrNotExist) {
		return Step{p + " is gone already", nil}
	}
	return Step{"remove " + p, func() error { return os.Remove(h.path(p)) }}
}

func (h host) removeAll(p string) Step {
	if _, err := os.Lstat(h.path(p)); errors.Is(err, fs.ErrNotExist) {
		return Step{p + " is gone already", nil}
	}
	return Step{"remove " + p + " with all that is in it", func() error { return os.RemoveAll(h.path(p)) }}
}
