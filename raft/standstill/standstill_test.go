package standstill

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// machine has clocks that are set by hand.
type machine struct {
	own, host, day time.Duration
	marker         uint64
	late           time.Duration // how long the thread stands between two clocks
}

func (m *machine) passes(d time.Duration) { m.own += d; m.host += d; m.day += d }

func (m *machine) watch() *Watch {
	return New(func() time.Duration { return m.own }, Sources{
		Clocks: []OtherClock{
			{Name: "the time of day", Read: func() (time.Duration, bool) { m.passes(m.late); return m.day, true }},
			{Name: "the host's clock", Apart: true, Read: func() (time.Duration, bool) { return m.host, m.host >= 0 }},
		},
		Marker: func() uint64 { return m.marker },
	})
}

func TestLook(t *testing.T) {
	for name, tt := range map[string]struct {
		happens func(m *machine)
		want    string // in the reason; empty: nothing
	}{
		"nothing":                            {func(m *machine) {}, ""},
		"an hour":                            {func(m *machine) { m.passes(time.Hour) }, ""},
		"a suspend: the own clock goes on":   {func(m *machine) { m.passes(8 * time.Hour) }, ""},
		"paused, and the host's clock shows": {func(m *machine) { m.host += 20 * ms }, "the host's clock is 20ms ahead"},
		"paused, and the time of day is set": {func(m *machine) { m.day += 20 * ms }, "the time of day is 20ms ahead"},
		"migrated":                           {func(m *machine) { m.marker++ }, "vmclock"},
		"the time of day is set back":        {func(m *machine) { m.day -= time.Hour }, ""},
		"less than a lease is waited out":    {func(m *machine) { m.host += ms / 2; m.day += ms / 2 }, ""},
		"the host's clock is faster":         {func(m *machine) { m.passes(time.Second); m.host += 9 * ms }, ""},
		"the thread is late between clocks":  {func(m *machine) { m.late = time.Second }, ""},
		"the host's clock cannot be read":    {func(m *machine) { m.host = -time.Hour }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{own: time.Hour, host: 50 * time.Hour, day: 500 * time.Hour}
			w := m.watch()
			m.passes(10 * ms)
			if why := w.Look(); why != "" {
				t.Fatal("at rest:", why)
			}
			tt.happens(m)
			why := w.Look()
			if (why == "") != (tt.want == "") || !strings.Contains(why, tt.want) {
				t.Errorf("it says %q, want %q", why, tt.want)
			}
			m.late = 0
			m.passes(10 * ms)
			if why := w.Look(); why != "" {
				t.Errorf("the next look says %q", why)
			}
		})
	}
}

// TestLateLookHidesNothing: a look whose thread was late between the clocks does not know how far they are apart, and
// forgets nothing that the one before knew.
func TestLateLookHidesNothing(t *testing.T) {
	m := &machine{own: time.Hour, host: 50 * time.Hour, day: 500 * time.Hour}
	w := m.watch()
	m.late = 500 * ms
	w.Look()
	m.late = 0
	m.day += 100 * ms
	if w.Look() == "" {
		t.Error("a pause of 100 ms is not seen after a look that took 500 ms")
	}
}

func TestWhatIsHeardIsSaidOnce(t *testing.T) {
	w := New(func() time.Duration { return 0 }, Sources{
		Listen: func(_ context.Context, heard func(string)) error { heard("because"); return nil },
	})
	found := 0
	if err := w.Listen(t.Context(), func() { found++ }); err != nil || found != 1 {
		t.Errorf("found %d times: %v", found, err)
	}
	if why := w.Look(); why != "because" {
		t.Errorf("it says %q", why)
	}
	if why := w.Look(); why != "" {
		t.Errorf("it says %q again", why)
	}
}

func TestVMClock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmclock0")
	page := make([]byte, os.Getpagesize())
	binary.LittleEndian.PutUint32(page, vmClockMagic)
	binary.LittleEndian.PutUint32(page[4:], 104)
	binary.LittleEndian.PutUint64(page[vmClockMarker:], 7)
	if err := os.WriteFile(path, page, 0o600); err != nil {
		t.Fatal(err)
	}
	mapped := mapVMClock(path)
	if mapped == nil {
		t.Fatal("the page is not mapped")
	}
	w := New(func() time.Duration { return 0 }, Sources{Marker: func() uint64 { return markerIn(mapped) }})
	if why := w.Look(); why != "" {
		t.Fatal("at rest:", why)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{8}, vmClockMarker); err != nil {
		t.Fatal(err)
	}
	if w.Look() == "" {
		t.Error("the hypervisor has changed its number, and nothing is seen")
	}
	page[0] = 'x'
	if err := os.WriteFile(path, page, 0o600); err != nil {
		t.Fatal(err)
	}
	if mapVMClock(path) != nil || mapVMClock(filepath.Join(t.TempDir(), "none")) != nil {
		t.Error("something else is taken for a vmclock")
	}
}

func TestHostClockIsFoundByItsName(t *testing.T) {
	class, dev := t.TempDir(), t.TempDir()
	for name, says := range map[string]string{"ptp0": "ena-ptp-05", "ptp1": hostClock} {
		os.MkdirAll(filepath.Join(class, name), 0o700)
		os.WriteFile(filepath.Join(class, name, "clock_name"), []byte(says+"\n"), 0o600)
		os.WriteFile(filepath.Join(dev, name), nil, 0o600)
	}
	if f := openHostClock(class, dev); f != nil {
		t.Error("a file that is no clock is taken for one:", f.Name())
	}
	if s := Host(); len(s.Clocks) == 0 {
		t.Error("this machine has no time of day")
	} else {
		s.Close()
	}
}

func TestIsNewMachine(t *testing.T) {
	event := func(s ...string) []byte { return []byte(strings.Join(s, "\x00") + "\x00") }
	for _, tt := range []struct {
		event []byte
		want  bool
	}{
		{event("change@/devices/platform/VMGENCTR:00", "ACTION=change", "SUBSYSTEM=platform", "NEW_VMGENID=1",
			"SEQNUM=4711"), true},
		{event("change@/devices/platform/VMGENCTR:00", "ACTION=change", "SEQNUM=4711"), false},
		{event("change@/class/net/lo", "ACTION=change", "SYNTH_ARG_NEW_VMGENID=1"), false},
		{nil, false},
	} {
		if got := isNewMachine(tt.event); got != tt.want {
			t.Errorf("%q: %v", tt.event, got)
		}
	}
}

// TestKernelIsHeard has the kernel tell of a device, which it does again when it is asked to.
func TestKernelIsHeard(t *testing.T) {
	const device = "/sys/devices/virtual/mem/null"
	if f, err := os.OpenFile(filepath.Join(device, "uevent"), os.O_WRONLY, 0); err != nil {
		t.Skip("needs root, and a writable /sys:", err)
	} else {
		f.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan string, 100), make(chan error, 1)
	go func() {
		ended <- listen(ctx, func(b []byte) {
			select {
			case heard <- string(b):
			default:
			}
		})
	}()
	found := false
	for tries := 0; !found && tries < 300; tries++ { // it may not listen yet
		if err := os.WriteFile(filepath.Join(device, "uevent"), []byte("change"), 0o200); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-heard:
			found = strings.HasPrefix(e, "change@/devices/virtual/mem/null\x00")
		case err := <-ended:
			t.Fatal("it listens no more:", err)
		case <-time.After(100 * ms):
		}
	}
	if !found {
		t.Error("the kernel's event is not heard")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
