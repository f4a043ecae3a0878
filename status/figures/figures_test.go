package figures

import (
	"testing"
)

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", .004: "0.00", .25: "0.25", 1.25: "1.2", 12.4: "12", 9999: "9999", 25_000: "25k", 3e7: "30M", 2e10: "20G",
	} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) is %s, want %s", v, got, want)
		}
	}
	for v, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_499: "999 kB", 999_600: "1.0 MB", 31 << 30: "33 GB",
		1 << 63: "9.2 EB",
	} {
		if got := Bytes(v); got != want {
			t.Errorf("Bytes(%d) is %s, want %s", v, got, want)
		}
	}
}
