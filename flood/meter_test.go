package flood

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/bpf"
)

// A meterClock feeds a meter with frames at times of its own.
type meterClock struct {
	meter
	now     time.Time
	handled map[string]int
	taken   int // that the filter let through
	changes int
}

func newMeterClock() *meterClock {
	return &meterClock{now: time.Unix(1000, 0), handled: make(map[string]int)}
}

// frame is one frame of a source, dropped by the filter where that would drop it. It passes a sample each 1<<sample
// times.
func (c *meterClock) frame(mac string, number int) {
	a := c.admitted
	if slices.Contains(a.blocked, mac) {
		return
	}
	if !slices.Contains(a.known, mac) && number&(1<<a.sample-1) != 0 {
		return
	}
	c.taken++
	handle, changed, _ := c.take(mac, c.now)
	if handle {
		c.handled[mac]++
	}
	if changed {
		c.changes++
	}
}

func (c *meterClock) pass(d time.Duration) {
	c.now = c.now.Add(d)
	if next := c.next(); !next.IsZero() && !next.After(c.now) {
		if c.look(c.now) {
			c.changes++
		}
	}
}

const quietMAC = "\x02\x00\x00\x00\x00\x99"

func forged(i int) string {
	return string(binary.BigEndian.AppendUint32([]byte{2, 7}, uint32(i)))
}

// One machine floods: the kernel drops it, all but what a machine may send, and others notice nothing.
func TestMeterBlocksAFloodingSource(t *testing.T) {
	c := newMeterClock()
	const rate, seconds = 100, 10 // frames in a millisecond
	flooder := forged(0)
	for ms := range 1000 * seconds {
		for i := range rate {
			c.frame(flooder, i)
		}
		if ms%100 == 0 {
			c.frame(quietMAC, ms)
		}
		c.pass(time.Millisecond)
	}
	if got, most := c.taken, 2*seconds*SourceMax; got > most {
		t.Errorf("%d frames of %d reach the process, want at most %d", got, 1000*seconds*rate, most)
	}
	if got := c.handled[quietMAC]; got != 10*seconds {
		t.Errorf("%d frames of the quiet machine are handled, want all %d", got, 10*seconds)
	}
	if got := c.handled[flooder]; got == 0 || got > 2*seconds*SourceMax {
		t.Errorf("%d frames of the flooding machine are handled, want some", got)
	}
	if c.changes > 5*seconds {
		t.Errorf("the filter is set %d times", c.changes)
	}
	for range 30 {
		c.pass(Window)
	}
	if a := c.admitted; len(a.blocked) > 0 || a.sample > 0 {
		t.Errorf("after the flood: %+v", a)
	}
}

// A holder that announces many VIPs at once is no flood, and neither is the one that takes over from it.
func TestMeterLetsHoldersAnnounce(t *testing.T) {
	c := newMeterClock()
	c.subjects = 200
	for range 3 {
		for i := range 2 * c.subjects {
			c.frame(quietMAC, i)
			c.frame(forged(7), i)
		}
		c.pass(Window)
	}
	if got, want := c.handled[quietMAC], 3*2*c.subjects; got != want || c.changes > 0 {
		t.Errorf("%d frames of %d are handled, and the filter is set %d times", got, want, c.changes)
	}
}

// Ever other sources flood: a sample passes, and machines that were known before are heard as ever.
func TestMeterSamplesAFloodOfForgedSources(t *testing.T) {
	c := newMeterClock()
	for range 30 {
		c.frame(quietMAC, 0)
		c.pass(Window)
	}
	c.handled = make(map[string]int)
	const rate, seconds = 200, 10
	n, heard := 0, 0
	for ms := range 1000 * seconds {
		for range rate {
			n++
			c.frame(forged(n), n)
		}
		if ms%500 == 0 {
			c.frame(quietMAC, 1)
			heard++
		}
		c.pass(time.Millisecond)
	}
	if got, most := c.taken, 30*seconds*StrangersMax; got > most {
		t.Errorf("%d frames of %d reach the process, want at most %d", got, n, most)
	}
	if got := c.handled[quietMAC]; got != heard {
		t.Errorf("%d frames of the known machine are handled, want all %d", got, heard)
	}
	if len(c.sources) > sourcesMax {
		t.Errorf("%d sources are remembered", len(c.sources))
	}
	for range 300 {
		c.pass(Window)
	}
	if a := c.admitted; a.sample > 0 || len(a.known) > 0 || !c.next().IsZero() {
		t.Errorf("after the flood: %+v", a)
	}
}

// A known machine that joins a flood is no longer exempt.
func TestMeterExemptsOnlyTheQuiet(t *testing.T) {
	c := newMeterClock()
	for range 30 {
		c.frame(quietMAC, 0)
		c.pass(Window)
	}
	for i := range 100 * StrangersMax {
		c.frame(forged(i), i)
		if c.admitted.sample > 0 {
			break
		}
	}
	if !slices.Contains(c.admitted.known, quietMAC) {
		t.Fatalf("the quiet machine is not known: %+v", c.admitted)
	}
	for range acquaintanceMax + 1 {
		c.frame(quietMAC, 1)
	}
	if slices.Contains(c.admitted.known, quietMAC) {
		t.Error("it is exempt although it sends much")
	}
}

// What the meter admits is what the filter does.
func TestAdmissionFilter(t *testing.T) {
	blocked, known := forged(1), forged(2)
	a := admission{blocked: []string{forged(7), blocked}, sample: 3, known: []string{forged(8), known, forged(9)}}
	for _, tt := range []struct {
		name   string
		mac    string
		random uint32
		accept bool
	}{
		{"blocked", blocked, 8, false},
		{"known", known, 1, true},
		{"stranger in the sample", quietMAC, 8, true},
		{"stranger out of the sample", quietMAC, 9, false},
		{"differs in the first bytes only", "\x03" + known[1:], 1, false},
	} {
		f := append(admissionFilter(a), bpf.RetConstant{Val: 1})
		for i, ins := range f {
			if _, ok := ins.(bpf.LoadExtension); ok { // the virtual machine has no random numbers
				f[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: tt.random}
			}
		}
		vm, err := bpf.NewVM(f)
		if err != nil {
			t.Fatal(err)
		}
		frame := append(append(make([]byte, 6), tt.mac...), 0, 0)
		if n, err := vm.Run(frame); err != nil || (n > 0) != tt.accept {
			t.Errorf("%s: accepted %v, %v", tt.name, n > 0, err)
		}
	}
}

// The longest filter has as many instructions as is said, and the kernel takes it.
func TestLongestFilter(t *testing.T) {
	a := admission{sample: 1}
	for i := range blockedMax {
		a.blocked = append(a.blocked, forged(i))
	}
	for i := range knownMax + trustedMax {
		a.known = append(a.known, forged(1000+i))
	}
	if got := len(admissionFilter(a)); got != FilterMax {
		t.Errorf("%d instructions, want %d", got, FilterMax)
	}
}

// A machine that proves its frames is heard in every flood: of others, of ever other machines, and of what comes in its
// own name. It loses that when it has not been heard for long.
func TestMeterHearsTheTrusted(t *testing.T) {
	for name, source := range map[string]func(i int) string{
		"one machine":            func(int) string { return forged(0) },
		"ever other machines":    forged,
		"the machine's own name": func(int) string { return quietMAC },
	} {
		t.Run(name, func(t *testing.T) {
			c := newMeterClock()
			c.trust(quietMAC, c.now)
			n, burst, sent := 0, 3*SourceMax, 0
			for ms := range 5000 {
				for range 100 {
					n++
					c.frame(source(n), n)
				}
				if ms%500 == 100 {
					before := c.handled[quietMAC]
					for range burst {
						c.frame(quietMAC, 1)
					}
					if got := c.handled[quietMAC] - before; got != burst {
						t.Errorf("%d frames of %d are handled", got, burst)
					}
					sent += burst
					c.trust(quietMAC, c.now)
				}
				c.pass(time.Millisecond)
			}
			if most := 3*SourceMax*10 + sent; source(0) != quietMAC && c.taken > 5*most {
				t.Errorf("%d frames of %d reach the process", c.taken, n)
			}
			for range 2 * trustFor / Window {
				c.now = c.now.Add(Window)
				c.look(c.now)
			}
			if a := c.admitted; len(c.trusted) > 0 || len(a.known) > 0 || a.sample > 0 {
				t.Errorf("after the flood: %v, %+v", c.trusted, a)
			}
		})
	}
}

// A machine that is trusted only after the flood has begun is exempt from then on.
func TestMeterTrustsInAFlood(t *testing.T) {
	c := newMeterClock()
	for i := 0; c.admitted.sample < 3; i++ {
		c.frame(forged(i), 0)
	}
	if !c.trust(quietMAC, c.now) || !slices.Contains(c.admitted.known, quietMAC) {
		t.Errorf("the filter does not know it: %+v", c.admitted)
	}
	if c.trust(quietMAC, c.now) {
		t.Error("the filter is set again for nothing")
	}
}
