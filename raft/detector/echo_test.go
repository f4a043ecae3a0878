package detector

import (
	"net/netip"
	"testing"
	"time"
)

// TestEcho: this host's kernel answers, and an answer to another process is none.
func TestEcho(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		t.Run(addr, func(t *testing.T) {
			to := netip.MustParseAddr(addr)
			own, other := AskKernels([8]byte{1}), AskKernels([8]byte{2})
			defer own.Close()
			defer other.Close()
			other.Ask(to, 1)
			own.Ask(to, 300)
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
				if from, n, ok := own.Answered(); ok {
					if from != to || n != 300 {
						t.Errorf("%s answers %d", from, n)
					}
					if _, n, more := own.Answered(); more {
						t.Errorf("another answer: %d", n)
					}
					return
				}
			}
			t.Error("nobody answers")
		})
	}
}
