package host

import "testing"

func TestForClients(t *testing.T) {
	for most, want := range map[uint64]int{
		0: 0, 100: 50, 256: 128, 400: 272, 1024: 768, 20_000: 18_976, 1 << 20: 1<<20 - 1024, 1 << 62: 1 << 30,
	} {
		if got := forClients(most); got != want {
			t.Errorf("%d files: %d for clients, want %d", most, got, want)
		}
	}
}
