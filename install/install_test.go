package install

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"appliance/configs"
)

// tree lists a directory's files and directories with their modes.
func tree(t *testing.T, root string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		info, err := d.Info()
		all = append(all, info.Mode().String()+" "+strings.TrimPrefix(path, root))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func params(t *testing.T, root string) Installation {
	t.Helper()
	program := filepath.Join(t.TempDir(), "appliance")
	if err := os.WriteFile(program, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Installation{Root: root, From: program, Config: []byte("vips: [192.0.2.10]\n"), Unit: []byte("[Unit]\n"),
		KeyFile: "/etc/appliance/group.key", Key: []byte("secret\n"),
		Files: []string{ConfigFile, "/etc/appliance/group.key"}}
}

// accounts are the users of a machine that the test has.
type accounts struct {
	uid, gid int
	there    bool
}

func (a *accounts) IDs() (uid, gid int, ok bool) { return a.uid, a.gid, a.there }
func (a *accounts) Make() error                  { a.there = true; return nil }
func (a *accounts) Remove() error                { a.there = false; return nil }

// own is this process's user, to whom everybody can give their files.
func own() *accounts { return &accounts{uid: os.Geteuid(), gid: os.Getegid(), there: true} }

func do(t *testing.T, steps []Step, dry bool) string {
	t.Helper()
	var b strings.Builder
	if err := Run(&b, steps, dry); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Installed, installed again, uninstalled, purged: what was there before is there at the end.
func TestInstallAndUndo(t *testing.T) {
	root := t.TempDir()
	var called []string
	systemctl := func(args ...string) error { called = append(called, strings.Join(args, " ")); return nil }
	p := params(t, root)
	p.Systemctl = systemctl
	install := func(dry bool) string {
		t.Helper()
		steps, err := Install(p)
		if err != nil {
			t.Fatal(err)
		}
		return do(t, steps, dry)
	}
	if out := install(true); strings.Count(out, "would ") != 10 || len(tree(t, root)) > 0 || called != nil {
		t.Errorf("the dry run did something:\n%s\n%v %v", out, tree(t, root), called)
	}
	install(false)
	want := []string{
		"drwxr-xr-x /etc", "drwx------ /etc/appliance", "-rw------- /etc/appliance/config.yaml",
		"-rw------- /etc/appliance/group.key",
		"drwxr-xr-x /etc/systemd", "drwxr-xr-x /etc/systemd/system", "-rw-r--r-- /etc/systemd/system/appliance.service",
		"drwxr-xr-x /etc/sysusers.d", "-rw-r--r-- /etc/sysusers.d/appliance.conf",
		"drwxr-xr-x /usr", "drwxr-xr-x /usr/local", "drwxr-xr-x /usr/local/bin", "-rwxr-xr-x /usr/local/bin/appliance",
		"drwxr-xr-x /var", "drwxr-xr-x /var/lib", "drwx------ /var/lib/appliance",
	}
	if got := tree(t, root); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if want := "daemon-reload, enable appliance.service, restart appliance.service"; strings.Join(called, ", ") != want {
		t.Errorf("called %v", called)
	}
	// A configuration that was changed is kept, and so is the key.
	config := filepath.Join(root, ConfigFile)
	if err := os.WriteFile(config, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Key = []byte("another\n")
	if out := install(false); !strings.Contains(out, "keep "+ConfigFile+", which differs") || !strings.Contains(out,
		"keep /etc/appliance/group.key, which differs") {
		t.Error(out)
	}
	if have, err := os.ReadFile(config); err != nil || string(have) != "mine" {
		t.Errorf("%s %v", have, err)
	}
	called = nil
	do(t, Uninstall(root, false, nil, systemctl), false)
	if got := strings.Join(tree(t, root), "\n"); strings.Contains(got, "service") || strings.Contains(got,
		"bin/appliance") || !strings.Contains(got, "config.yaml") {
		t.Error(got)
	}
	if want := []string{"disable --now appliance.service", "daemon-reload"}; !slices.Equal(called, want) {
		t.Errorf("called %v", called)
	}
	do(t, Uninstall(root, true, nil, systemctl), false)
	if got := strings.Join(tree(t, root), "\n"); strings.Contains(got, "appliance") {
		t.Error(got)
	}
}

// Over an older version that runs, the new program runs at the end, by the new unit; and after a second time, too.
func TestInstallOverARunningVersion(t *testing.T) {
	root := t.TempDir()
	p := params(t, root)
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(string(text), mark)
	}
	var loaded, running string // the unit that systemd knows; the program and the unit of the process
	enabled := false
	p.Systemctl = func(args ...string) error {
		start := func() { running = read(Program) + " by " + loaded }
		switch strings.Join(args, " ") {
		case "daemon-reload":
			loaded = read(UnitFile)
		case "enable appliance.service":
			enabled = true
		case "enable --now appliance.service":
			enabled = true
			if running == "" {
				start()
			}
		case "restart appliance.service":
			start()
		case "try-restart appliance.service":
			if running != "" {
				start()
			}
		default:
			return errors.New("not known here")
		}
		return nil
	}
	for _, version := range []string{"old", "new", "new"} {
		p.Unit = []byte("unit of " + version)
		if err := os.WriteFile(p.From, []byte(version), 0o755); err != nil {
			t.Fatal(err)
		}
		steps, err := Install(p)
		if err != nil {
			t.Fatal(err)
		}
		out := do(t, steps, false)
		if want := version + " by unit of " + version; running != want || !enabled {
			t.Errorf("%q runs, want %q; enabled: %v", running, want, enabled)
		}
		if !strings.Contains(out, "starts it anew if it runs already") {
			t.Errorf("the steps do not say that a running service is restarted:\n%s", out)
		}
	}
}

func TestOthersUnitStays(t *testing.T) {
	root := t.TempDir()
	unit := filepath.Join(root, UnitFile)
	if err := os.MkdirAll(filepath.Dir(unit), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(unit, []byte("[Unit]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(params(t, root)); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("%v", err)
	}
	if out := do(t, Uninstall(root, true, nil, nil), false); !strings.Contains(out, "keep "+UnitFile) {
		t.Error(out)
	}
	if _, err := os.Stat(unit); err != nil {
		t.Error(err)
	}
}

// Each step may fail: the error names it, and the same command goes on later.
func TestEveryStepFailsOnce(t *testing.T) {
	root := t.TempDir()
	failing := 0
	for {
		calls := 0
		p := params(t, root)
		p.Systemctl = func(...string) error {
			if calls++; calls > failing {
				return errors.New("no")
			}
			return nil
		}
		steps, err := Install(p)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		err = Run(&b, steps, false)
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "systemctl") || !strings.Contains(err.Error(), "run this again") {
			t.Fatal(err)
		}
		if failing++; failing > 5 {
			t.Fatal("it never ends")
		}
	}
}

func TestFile(t *testing.T) {
	said := map[string]string{
		"vip": "192.0.2.10,2001:db8::10", "peers": "a=192.0.2.2, 192.0.2.3+2001:db8::3,192.0.2.4", "insecure": "true",
		"listen": "127.0.0.1", "backend-port": "8443", "priority": "7", "admin-listen": "127.0.0.1:9000",
		"data-plane": "userspace", "log-level": "debug", "port": "10007", "linger": "5s", "check": "tcp",
	}
	src := configs.Source{Flag: func(name string) (string, bool) { v, ok := said[name]; return v, ok },
		FileExists: func(string) bool { return false }}
	text, err := File(src, nil)
	if err != nil {
		t.Fatal(err)
	}
	fromFile, err := configs.Parse("file", text, configs.Source{FileExists: func(string) bool { return false }})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	fromFlags, err := configs.Parse("", nil, src)
	if err != nil {
		t.Fatal(err)
	}
	values := func(c *configs.Config) (all []string) {
		for _, v := range c.Show() {
			if v.Key == "addPeersAsBackends" {
				continue // only a file has to say it
			}
			all = append(all, v.Key+"="+v.Value)
		}
		slices.Sort(all)
		return all
	}
	if got, want := values(fromFile), values(fromFlags); !slices.Equal(got, want) {
		t.Errorf("the file says\n%s\nand the flags\n%s\nin\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), text)
	}
}

func TestFileWithBackends(t *testing.T) {
	said := map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.2,192.0.2.3,192.0.2.4", "insecure": "true"}
	src := configs.Source{Flag: func(name string) (string, bool) { v, ok := said[name]; return v, ok }}
	text, err := File(src, []string{"192.0.2.11", "192.0.2.12:7443"})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := configs.Parse("file", text, configs.Source{FileExists: func(string) bool { return false }})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b := cfg.LoadBalancers[0].Backends
	if len(b) != 2 || b[0].Addr.String() != "192.0.2.11:6443" || b[1].Addr.String() != "192.0.2.12:7443" {
		t.Errorf("%v", b)
	}
}

// The service's user is made first, may read what is named and change none of it, and has its data. All of it is done
// once, and what root writes later is given again.
func TestUserOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	root := t.TempDir()
	who := &accounts{uid: 4242, gid: 4343}
	p := params(t, root)
	p.Accounts = who
	p.Files = append(p.Files, "/etc/appliance/tls/node.key", "/etc/ssl/private/shared.key")
	put := func(path, text string, mode os.FileMode) {
		t.Helper()
		path = filepath.Join(root, path)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode))
		if err != nil {
			t.Fatal(err)
		}
	}
	// An older version has been here, as root.
	put("etc/appliance/tls/node.key", "key", 0o600)
	put("etc/appliance/mine.key", "not the service's", 0o600)
	put("etc/ssl/private/shared.key", "somebody else's", 0o600)
	put("var/lib/appliance/raft.db", "votes", 0o600)
	put("var/lib/appliance/snapshots/1/state", "state", 0o600)
	put("etc/shadow", "secret", 0o600)
	data := filepath.Join(root, dataDir)
	if err := errors.Join(os.Symlink("../../../etc/shadow", filepath.Join(data, "link")),
		os.Link(filepath.Join(root, "etc/shadow"), filepath.Join(data, "second"))); err != nil {
		t.Fatal(err)
	}
	steps, err := Install(p)
	if err != nil {
		t.Fatal(err)
	}
	before := tree(t, root)
	if out := do(t, steps, true); who.there || !strings.Contains(out, "would add system user appliance\n") ||
		!strings.Contains(out, "would let user appliance read /etc/appliance/group.key\n") ||
		!slices.Equal(before, tree(t, root)) {
		t.Errorf("the dry run: %v\n%s", who, out)
	}
	do(t, steps, false)
	is := func(path string, mode os.FileMode, uid, gid int) {
		t.Helper()
		info, err := os.Lstat(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		s := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm() != mode || int(s.Uid) != uid || int(s.Gid) != gid {
			t.Errorf("%s has mode %o, user %d, group %d; want %o, %d, %d", path, info.Mode().Perm(), s.Uid, s.Gid, mode,
				uid, gid)
		}
	}
	is("var/lib/appliance/raft.db", 0o600, 0, 0) // root may still be writing it
	prepare := func() string { return do(t, Prepare(root, who, p.Files, dataDir, nil), false) }
	prepare()
	check := func() {
		t.Helper()
		is("etc/appliance", 0o750, 0, 4343)
		is("etc/appliance/config.yaml", 0o640, 0, 4343)
		is("etc/appliance/group.key", 0o640, 0, 4343)
		is("etc/appliance/tls", 0o750, 0, 4343)
		is("etc/appliance/tls/node.key", 0o640, 0, 4343)
		is("etc/appliance/mine.key", 0o600, 0, 0)
		is("etc/ssl/private/shared.key", 0o600, 0, 0)
		is("etc/shadow", 0o600, 0, 0)
		is("var/lib/appliance", 0o700, 4242, 4343)
		is("var/lib/appliance/raft.db", 0o600, 4242, 4343)
		is("var/lib/appliance/snapshots/1/state", 0o600, 4242, 4343)
	}
	check()
	if out := prepare(); out != "" {
		t.Errorf("there was something left to do:\n%s", out)
	}
	// Root writes files anew, as an editor does, and runs a command on the data.
	for _, path := range []string{"etc/appliance/config.yaml", "var/lib/appliance/raft.db"} {
		if err := os.Remove(filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
		put(path, "again", 0o600)
	}
	if out := prepare(); strings.Count(out, "\n") != 2 {
		t.Errorf("prepared:\n%s", out)
	}
	check()
	if out := do(t, Uninstall(root, false, who, nil), false); !who.there {
		t.Error(out)
	}
	if out := do(t, Uninstall(root, true, who, nil), false); who.there || !strings.Contains(out, "remove user appliance") {
		t.Error(out)
	}
}

// A package's unit is adapted to the configuration, and not any more when that has changed. What others wrote stays.
func TestDropIn(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, DropInFile)
	prepare := func(text string) string { return do(t, Prepare(root, own(), nil, "", []byte(text)), false) }
	if out := prepare(""); out != "" {
		t.Error(out)
	}
	for _, text := range []string{"[Service]\nUser=root\n", "[Service]\nAmbientCapabilities=CAP_KILL\n"} {
		prepare(text)
		if have, err := os.ReadFile(path); err != nil || string(have) != mark+text {
			t.Errorf("%q, %v", have, err)
		}
		if out := prepare(text); strings.Contains(out, "replace") {
			t.Error(out)
		}
	}
	prepare("")
	if _, err := os.Stat(path); err == nil {
		t.Error("it is still there")
	}
	if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	prepare("[Service]\n")
	if have, err := os.ReadFile(path); err != nil || string(have) != "mine" {
		t.Errorf("%q, %v", have, err)
	}
}
