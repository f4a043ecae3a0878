package auth

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestKeysOfTheFirstVersion: keys and what is derived from them stay the same.
func TestKeysOfTheFirstVersion(t *testing.T) {
	was := readGolden(t)
	key := Key{secret: [32]byte([]byte("0123456789abcdef0123456789abcdef"))}
	ca, _, err := key.authority()
	if err != nil {
		t.Fatal(err)
	}
	w, err := key.Worker()
	if err != nil {
		t.Fatal(err)
	}
	workers, _, err := w.authority()
	if err != nil {
		t.Fatal(err)
	}
	for name, now := range map[string]string{
		"key": key.Text(), "key/authority": fmt.Sprintf("%x", ca.PublicKey),
		"key/worker": w.Text(), "key/workers-authority": fmt.Sprintf("%x", workers.PublicKey),
	} {
		if now != was[name] {
			t.Errorf("%s is\n%s\nand in the first version\n%s", name, now, was[name])
		}
	}
	if _, err := ParseKey([]byte(was["key"])); err != nil {
		t.Errorf("key: %v", err)
	}
	if _, err := ParseWorkerKey([]byte(was["key/worker"])); err != nil {
		t.Errorf("key/worker: %v", err)
	}
}

// readGolden are the bytes of the first version, by name.
func readGolden(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../testdata/v1/bytes.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines[key] = value
	}
	return lines
}
