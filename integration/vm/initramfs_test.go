package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	deps := "a/9p.ko: b/9pnet.ko c/netfs.ko\nb/9pnet.ko: c/netfs.ko\nc/netfs.ko:\nd/other.ko: a/9p.ko\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(deps), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("e/virtio_pci.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	k := kernel{modules: dir}
	got, err := k.loadOrder([]string{"virtio_pci", "9p"})
	want := []string{"c/netfs.ko", "b/9pnet.ko", "a/9p.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	if _, err := k.loadOrder([]string{"overlay"}); err == nil || !strings.Contains(err.Error(), "no module overlay") {
		t.Errorf("a missing module: got %v", err)
	}
}

func TestQuote(t *testing.T) {
	for _, word := range []string{"", "plain", "two words", `it's`, "$HOME `id` \\ \"", "line\nline", "-n", "*"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q came back as %q, %v", word, out, err)
		}
	}
}

func TestCpio(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox to read the archive with; install busybox-static")
	}
	var ar bytes.Buffer
	w := &cpioWriter{w: &ar}
	w.dir("d")
	w.file("d/odd", 0o755, []byte("12345"))
	w.file("d/empty", 0o644, nil)
	w.end()
	if w.err != nil {
		t.Fatal(w.err)
	}

	dir := t.TempDir()
	cmd := exec.Command(busybox, "cpio", "-i")
	cmd.Dir, cmd.Stdin = dir, &ar
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "d", "odd")); err != nil || string(b) != "12345" {
		t.Errorf("odd is %q, %v", b, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "d", "odd")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("odd: %v, %v", st, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "d", "empty")); err != nil || st.Size() != 0 {
		t.Errorf("empty: %v, %v", st, err)
	}
}
