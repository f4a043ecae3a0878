package auth

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestClockOfCertificates: who is a peer does not depend on the time of day.
func TestClockOfCertificates(t *testing.T) {
	key := GenerateKey()
	a, err := FromKeys([]Key{key}, "a", Peer)
	if err != nil {
		t.Fatal(err)
	}
	z, err := FromKeys([]Key{key}, "z", Peer)
	if err != nil {
		t.Fatal(err)
	}
	for _, years := range []int{-60, 0, 60} {
		server, client := a.TLS(), z.TLS()
		at := func() time.Time { return time.Now().AddDate(years, 0, 0) }
		server.Time, client.Time = at, at
		left, right := net.Pipe()
		done := make(chan error, 1)
		s := tls.Server(left, server)
		go func() { done <- s.Handshake() }()
		if err := tls.Client(right, client).Handshake(); err != nil {
			t.Errorf("%d years: %v", years, err)
		}
		if err := <-done; err != nil {
			t.Errorf("%d years: %v", years, err)
		}
		if who, err := a.Verify(s.ConnectionState()); err != nil || who.ID != "z" {
			t.Errorf("%d years: the other is %+v, %v", years, who, err)
		}
		left.Close()
		right.Close()
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	key := GenerateKey()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, mode := range []os.FileMode{0o600, 0o400} {
		got, err := LoadKey(write("good", key.Text()+"\n", mode))
		if err != nil || got != key {
			t.Errorf("mode %o: %v", mode, err)
		}
		os.Remove(filepath.Join(dir, "good"))
	}
	for name, tt := range map[string]struct {
		path, want string
	}{
		"missing": {filepath.Join(dir, "missing"), "appliance keygen > " + filepath.Join(dir, "missing")},
		"open":    {write("open", key.Text(), 0o640), "chmod 600 " + filepath.Join(dir, "open")},
		"empty":   {write("empty", "", 0o600), "appliance keygen"},
		"other":   {write("other", "-----BEGIN CERTIFICATE-----", 0o600), "not a group key"},
		"short":   {write("short", key.Text()[:40], 0o600), "damaged"},
		"folder":  {dir, "not a regular file"},
	} {
		_, err := LoadKey(tt.path)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", name, err, tt.want)
		}
	}
}

func TestSeveralKeysInOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	a, b := GenerateKey(), GenerateKey()
	write := func(keys ...string) {
		if err := os.WriteFile(path, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(a.Text(), b.Text())
	if keys, err := LoadKeys(path); err != nil || len(keys) != 2 || keys[0] != a || keys[1] != b {
		t.Errorf("%v, %v", keys, err)
	}
	write(a.Text(), b.Text(), a.Text(), b.Text())
	if _, err := LoadKeys(path); err == nil || !strings.Contains(err.Error(), "more than 3 keys") {
		t.Errorf("%v", err)
	}
	write(a.Text(), "nonsense")
	if _, err := LoadKeys(path); err == nil {
		t.Error("nonsense was passed over")
	}
}

// TestCertificateIsNoFile gives a pipe that nobody writes to, and a device without an end: neither holds up the start.
func TestCertificateIsNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe, key, text := filepath.Join(dir, "pipe"), filepath.Join(dir, "key"), filepath.Join(dir, "text")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{key, text} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{pipe, "/dev/zero", dir} {
		_, err := (Security{CA: text, Cert: path, Key: key}).fromFiles(nil)
		if err == nil || !strings.Contains(err.Error(), path+" is not a regular file") {
			t.Errorf("a certificate in %s: %v", path, err)
		}
	}
}
