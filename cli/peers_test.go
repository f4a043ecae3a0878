package cli

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwaitEnd(t *testing.T) {
	for _, tt := range []struct {
		name   string
		counts []int // one a second; the last one stays
		told   []int
		ended  bool
		took   time.Duration
	}{
		{"none", []int{0}, []int{0}, true, 2 * time.Second},
		{"some that end", []int{7, 7, 2, 0}, []int{7, 2, 0}, true, 5 * time.Second},
		{"one comes while other nodes learn of it", []int{0, 0, 1, 0}, []int{0, 1, 0}, true, 5 * time.Second},
		{"some that stay", []int{7, 3}, []int{7, 3}, false, 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, asked := time.Now(), 0
				var told []int
				n, ended, err := awaitEnd(t.Context(), 10*time.Second, func(context.Context) (int, error) {
					asked++
					return tt.counts[min(asked, len(tt.counts))-1], nil
				}, func(n int) { told = append(told, n) })
				if err != nil || ended != tt.ended || n != tt.counts[len(tt.counts)-1] {
					t.Errorf("%d, %v, %v", n, ended, err)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("it took %s, not %s", took, tt.took)
				}
				if !slices.Equal(told, tt.told) {
					t.Errorf("it told %v, not %v", told, tt.told)
				}
			})
		})
	}
	gone := errors.New("gone")
	if _, _, err := awaitEnd(t.Context(), time.Hour, func(context.Context) (int, error) { return 0, gone },
		func(int) {}); !errors.Is(err, gone) {
		t.Errorf("an appliance that is gone: %v", err)
	}
}
