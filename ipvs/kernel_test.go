package ipvs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// What somebody else has the kernel load is waited for, and what nobody loads is not.
func TestOpenWhileLoading(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "initstate")
	set := func(text string) {
		if err := os.WriteFile(state, []byte(text+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		name  string
		tries func(n int) error // the n-th
		state string            // "" is no such file
		want  error
		after time.Duration
	}{
		{"no module", func(int) error { return fs.ErrNotExist }, "", errNoIPVS, 0},
		{"loaded meanwhile", func(n int) error {
			if n < 100 {
				return fs.ErrNotExist
			}
			set("live")
			return nil
		}, "coming", nil, 99 * 20 * time.Millisecond},
		{"begun between two looks", func(n int) error {
			if n > 1 {
				return nil
			}
			set("coming")
			return fs.ErrNotExist
		}, "", nil, 20 * time.Millisecond},
		{"stuck", func(int) error { return fs.ErrNotExist }, "coming", errNoIPVS, loadingFor},
		{"no capability", func(int) error { return fs.ErrPermission }, "live", fs.ErrPermission, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if os.Remove(state); tt.state != "" {
				set(tt.state)
			}
			synctest.Test(t, func(t *testing.T) {
				began, n := time.Now(), 0
				_, err := open(func() (kernel, error) {
					n++
					return nil, tt.tries(n)
				}, state)
				if after := time.Since(began); !errors.Is(err, tt.want) || after != tt.after {
					t.Errorf("%v after %v, want %v after %v", err, after, tt.want, tt.after)
				}
			})
		})
	}
}
