package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// enter lays an overlay on the root, which takes all that is changed, and runs a script in it.
const enter = `set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
[ -e "$1/root/dev/null" ] || mknod -m 666 "$1/root/dev/null" c 1 3
mkdir -p "$1/root/packages"
cp "$2"/appliance_* "$2"/SHA256SUMS "$1/root/packages/" 2>/dev/null || cp "$2"/appliance_* "$1/root/packages/"
exec chroot "$1/root" sh -eu -c "$3"
`

// scratch runs a script as root in a copy of this machine's file system, which is thrown away, with the packages of dir
// in /packages.
func scratch(t *testing.T, dir, script string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: lays an overlay on the file system")
	}
	for {
		before := packagesChanged()
		// The mounts are in a namespace of their own, and end with it.
		cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, "sh",
			t.TempDir(), dir,
			script)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return string(out)
		}
		// An overlay whose lower part changes meanwhile is undefined.
		if packagesChanged().Equal(before) {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Log("somebody installed packages meanwhile: again")
	}
}

// packagesChanged is when packages were last installed or removed on this machine.
func packagesChanged() time.Time {
	info, err := os.Stat("/var/lib/dpkg/status")
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// kernelHasOverlay skips where the kernel has none.
func kernelHasOverlay(t *testing.T) {
	t.Helper()
	if data, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(data), "overlay") {
		t.Skip("this kernel has no overlay file system")
	}
	var s unix.Statfs_t
	if err := unix.Statfs("/", &s); err == nil && s.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Skip("the root is an overlay already, and cannot be the lower part of another")
	}
}

// On Debian: installed, upgraded with configuration and data kept, removed with both kept, purged.
func TestDebianPackage(t *testing.T) {
	kernelHasOverlay(t)
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("no dpkg: not a Debian machine")
	}
	next := filepath.Join(t.TempDir(), "next")
	r := release{root: "..", out: next, arches: []arch{made.arch}}
	if err := r.describe(t.Context(), "v1.2.4", 1e9); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(next, 0o755); err != nil {
		t.Fatal(err)
	}
	var files []file
	for _, f := range filesOf(t, name(t, ".tar.gz")) {
		if f.path == "appliance" {
			f.data = []byte("#!/bin/sh\necho appliance v1.2.4\n")
		}
		files = append(files, f)
	}
	if err := r.packages(made.arch, files); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(name(t, ".deb"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(next, filepath.Base(name(t, ".deb"))), old, 0o644); err != nil {
		t.Fatal(err)
	}
	out := scratch(t, next, `
dpkg -i /packages/appliance_v1.2.3_*.deb
test "$(appliance version)" = 'appliance v1.2.3'
test "$(stat -c %a /etc/appliance /var/lib/appliance | tr '\n' ' ')" = '700 700 '
test "$(getent passwd appliance | cut -d: -f6,7)" = /var/lib/appliance:/usr/sbin/nologin
grep -q 'ExecStart=/usr/bin/appliance' /lib/systemd/system/appliance.service
test -e /usr/share/man/man8/appliance.8 || test -e /etc/dpkg/dpkg.cfg.d/docker
cp /usr/share/doc/appliance/config.yaml /etc/appliance/config.yaml
sed -i 's/heartbeat: 150ms/heartbeat: 333ms/' /etc/appliance/config.yaml
echo vote > /var/lib/appliance/vote
(umask 077; appliance keygen > /etc/appliance/group.key)
service() { setpriv --reuid appliance --regid appliance --clear-groups "$@"; }
! service appliance config check /etc/appliance/config.yaml
cp /usr/bin/appliance /usr/bin/whole # the next version is a script
dpkg -i /packages/appliance_v1.2.3_*.deb # as from a version that ran as root
service whole config check /etc/appliance/config.yaml
service test -r /etc/appliance/group.key
! service test -w /etc/appliance/group.key
! service test -w /var/lib/appliance/vote # an older version may be running
whole prepare --data --config=/etc/appliance/config.yaml
service test -w /var/lib/appliance/vote
! setpriv --reuid nobody --regid nogroup --clear-groups test -r /etc/appliance/group.key
dropin=/etc/systemd/system/appliance.service.d/50-configuration.conf
! test -e $dropin
whole prepare --unit --config=/etc/appliance/config.yaml > /said
! test -s /said
printf 'hooks:\n- on: [holder]\n  exec: [/bin/true]\n' >> /etc/appliance/config.yaml
whole prepare --unit --config=/etc/appliance/config.yaml
grep -q '^AmbientCapabilities=CAP_SETUID CAP_SETGID CAP_KILL$' $dropin
printf '  user: root\n' >> /etc/appliance/config.yaml
whole prepare --unit --config=/etc/appliance/config.yaml 2> /said
grep -q 'as root, because it runs programs with' /said
grep -q '^User=root$' $dropin
dpkg -i /packages/appliance_v1.2.4_*.deb
test "$(appliance version)" = 'appliance v1.2.4'
dpkg-query -W -f '${Version} ${Status}\n' appliance
grep -q 333ms /etc/appliance/config.yaml
dpkg -r appliance
grep -q 333ms /etc/appliance/config.yaml
test "$(cat /var/lib/appliance/vote)" = vote
! test -e /usr/bin/appliance
dpkg -i /packages/appliance_v1.2.4_*.deb
dpkg -P appliance
! test -e /etc/appliance
! test -e /var/lib/appliance
! test -e /lib/systemd/system/appliance.service
! test -e $dropin
! getent passwd appliance
`)
	if !strings.Contains(out, "1.2.4-1 install ok installed") {
		t.Error(out)
	}
}

// rpm takes the package too: Debian has an rpm that installs into a database of its own.
func TestRPMPackage(t *testing.T) {
	kernelHasOverlay(t)
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("no rpm: apt-get install rpm")
	}
	scratch(t, dist(t), `
rpm --dbpath /rpm --nodeps --ignorearch -i /packages/appliance_v1.2.3_*.rpm
test "$(appliance version)" = 'appliance v1.2.3'
getent passwd appliance
grep -q 'ExecStart=/usr/bin/appliance' /usr/lib/systemd/system/appliance.service
echo x > /etc/appliance/config.yaml
rpm --dbpath /rpm -e appliance
test -e /etc/appliance/config.yaml
! test -e /usr/bin/appliance
`)
}
