package pathprobe

import (
	"bytes"
	"testing"
	"time"
)

// The window takes every number once, in any order that a network makes of them.
func TestWindow(t *testing.T) {
	var w window
	for _, tt := range []struct {
		n    uint64
		want bool
	}{
		{1, true}, {1, false}, {3, true}, {2, true}, {2, false}, {3, false}, {67, true}, {3, false}, {4, true}, {4, false},
		{1000, true}, {67, false}, {937, true}, {936, false}, {999, true}, {1001, true}, {1000, false}, {0, false},
	} {
		if got := w.take(tt.n); got != tt.want {
			t.Errorf("number %d is taken: %v, want %v", tt.n, got, tt.want)
		}
	}
}

// What a sender may do before and after it has answered a challenge, and what a
// recording of it may.
func TestSighting(t *testing.T) {
	first, second, third := process{1}, process{2}, process{3}
	ready := kindControl + kindReady
	now := time.Unix(1000, 0)
	var s sighting
	for i, tt := range []struct {
		why   string
		kind  probeKind
		of    process
		n     uint64
		fresh bool
		after time.Duration
		want  bool
	}{
		{"an unknown process asks", kindPath, first, 5, false, 0, true},
		{"and leaves", kindLeave, first, 6, false, 0, false},
		{"a node of the first version asks", kindControl, process{}, 0, false, 0, true},
		{"and leaves", kindLeave, process{}, 0, false, 0, true},
		{"again and again", kindLeave, process{}, 0, false, time.Second, false},
		{"an answer to nobody", ready, first, 7, false, 0, false},
		{"an answer to us", ready, first, 8, true, 0, true},
		{"the same again", ready, first, 8, true, 0, false},
		{"a recording of before", kindPath, first, 5, false, 0, true}, // new to us: it is of the same process
		{"a recording of before, again", kindPath, first, 5, false, 0, false},
		{"a recording of the first form", kindLeave, process{}, 0, false, 20 * time.Second, false},
		{"it leaves", kindLeave, first, 9, false, 0, true},
		{"it leaves, again", kindLeave, first, 9, false, 0, false},
		{"the next process asks", kindAskAgain, second, 1, false, 0, true},
		{"and answers", ready, second, 2, true, 0, true},
		{"the one before leaves", kindLeave, first, 10, false, 0, false},
		{"the one before answers late", ready, first, 11, true, 0, false},
		{"a recording of a third", kindLeave, third, 1, false, 0, false},
		{"the first form, too soon", kindControl, process{}, 0, false, oldFor - time.Second, false},
		{"the first form, after an older version has been installed",
			kindControl, process{}, 0, false, 2 * time.Second, true},
	} {
		now = now.Add(tt.after)
		if got := s.admit(probe{kind: tt.kind, process: tt.of, number: tt.n}, tt.fresh, now); got != tt.want {
			t.Errorf("%d: %s: taken is %v, want %v", i, tt.why, got, tt.want)
		}
	}
}

// The second form is understood by nodes that know the first only, and every byte of
// it is signed, the MAC addresses too.
func TestSecondForm(t *testing.T) {
	key := []byte("key")
	src, dst := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	for _, f := range frontends {
		want := testProbe(f)
		old := want.frame(src, dst, key)
		want.process, want.number = process{7}, 9
		frame := want.frame(src, dst, key)
		if got, mac, ok := parseProbe(frame, key); !ok || got != want || mac != src {
			t.Fatalf("got %+v from %x (%v), want %+v", got, mac, ok, want)
		}
		tcp := len(old) - probeLen
		if !bytes.Equal(frame[tcp:tcp+probeLen], old[tcp:]) {
			t.Error("a node that knows the first form does not understand the second")
		}
		for i := range frame {
			bad := bytes.Clone(frame)
			bad[i] ^= 1
			if m, _, ok := parseProbe(bad, key); ok && (m != want || i < 12 || i >= tcp) {
				t.Errorf("byte %d altered: taken as %+v", i, m)
			}
		}
		for n := len(old); n < len(frame); n++ {
			if m, _, ok := parseProbe(frame[:n], key); ok && m.isSecondForm() {
				t.Errorf("taken for the second form though cut after %d bytes", n)
			}
		}
	}
}
