package flood

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"time"
)

const (
	// Window is the time over which frames are counted.
	Window = 100 * time.Millisecond

	// SourceMax is how many frames one source may send in a window, a thousand a second, or framesPerSubject for each
	// thing it can speak of, such as a VIP, if that is more. A machine that looks for a VIP sends one in a second; a
	// holder announces all at once.
	SourceMax        = 100
	framesPerSubject = 4

	// BlockFor is how long the kernel drops the frames of a source that sent more.
	BlockFor = time.Second

	// StrangersMax is how many frames all sources that are not known may send in a window. What is more comes from many
	// machines or forged sources, and only a sample of it passes the filter.
	StrangersMax = 120

	// A source is known that has been heard over KnownAfter: forged sources are ever others. In a flood of those, a
	// known source may send acquaintanceMax frames in a window that no sampling thins out.
	KnownAfter      = time.Second
	acquaintanceMax = 20

	// A source is trusted for trustFor after a frame that only it can have sent.
	trustFor = 30 * time.Second

	// Bounds on what a flood makes us remember, and on the length of the filter.
	blockedMax = 64
	knownMax   = 64
	trustedMax = 128
	sourcesMax = 1024

	// sampleMax is the coarsest sample, one frame of 65,536.
	sampleMax = 16
)

// An admission is what the filter of a socket does with sources of frames, each a MAC of 6 bytes.
type admission struct {
	blocked []string
	// sample is how often the share of frames that pass is halved; known sources are exempt.
	sample int
	known  []string
}

func (a admission) equal(b admission) bool {
	return a.sample == b.sample && slices.Equal(a.blocked, b.blocked) && slices.Equal(a.known, b.known)
}

// A meter counts the frames that a socket receives, and decides which the kernel should drop. Its zero value is ready
// for use by one goroutine.
type meter struct {
	sources   map[string]*meterSource
	admitted  admission
	began     time.Time            // the window
	strangers int                  // frames in it from sources that are not exempt from sampling
	sampled   time.Time            // when the sample was last made coarser or finer
	trusted   map[string]time.Time // when each has last proved a frame to be its own
	subjects  int
}

// atMost is most, or what the subjects need.
func (m *meter) atMost(most int) int { return max(most, framesPerSubject*m.subjects) }

type meterSource struct {
	first, last time.Time
	window      time.Time // the one that frames belongs to
	frames      int
	until       time.Time // while it is blocked
}

func (s *meterSource) known() bool { return s.last.Sub(s.first) >= KnownAfter }

// take counts a frame and reports whether it is to be handled. changed says that the filter is to be set anew from
// admitted. flooder says that the source has just been blocked.
func (m *meter) take(mac string, now time.Time) (handle, changed, flooder bool) {
	changed = m.look(now)
	if _, ok := m.trusted[mac]; ok {
		return true, changed, false
	}
	s := m.source(mac, now)
	if s == nil {
		return m.takeStranger(now, changed)
	}
	if s.window != m.began {
		s.window, s.frames = m.began, 0
	}
	s.frames++
	s.last = now
	switch {
	case now.Before(s.until):
		return false, changed, false // it was on its way when the filter was set
	case s.frames > m.atMost(SourceMax) && len(m.admitted.blocked) < blockedMax:
		s.until, s.first = now.Add(BlockFor), now
		m.admitted.blocked = append(slices.Clone(m.admitted.blocked), mac)
		m.forget(mac)
		return false, true, true
	case s.frames > m.atMost(SourceMax):
		return false, changed, false
	case slices.Contains(m.admitted.known, mac):
		if s.frames > m.atMost(acquaintanceMax) {
			m.forget(mac)
			changed = true
		}
		return true, changed, false
	}
	return m.takeStranger(now, changed)
}

// trust notes that a source has sent a frame that nobody else can have sent.
func (m *meter) trust(mac string, now time.Time) (changed bool) {
	if _, ok := m.trusted[mac]; ok {
		m.trusted[mac] = now
		return false
	}
	if len(m.trusted) >= trustedMax {
		return false
	}
	if m.trusted == nil {
		m.trusted = make(map[string]time.Time)
	}
	m.trusted[mac] = now
	if m.admitted.sample == 0 {
		return false
	}
	m.forget(mac)
	m.admitted.known = append(m.admitted.known, mac)
	return true
}

// forget ends a source's exemption from sampling.
func (m *meter) forget(mac string) {
	m.admitted.known = slices.DeleteFunc(slices.Clone(m.admitted.known), func(k string) bool { return k == mac })
}

// takeStranger counts a frame of a source that is not exempt from sampling.
func (m *meter) takeStranger(now time.Time, filter bool) (handle, changed, flooder bool) {
	if m.strangers++; m.strangers <= m.atMost(StrangersMax) {
		return true, filter, false
	}
	// So many have come in part of a window. Let half of what is allowed pass.
	times := 2 * int(Window/max(now.Sub(m.began), Window/1024))
	if m.admitted.sample == 0 {
		m.admitted.known = append(slices.Sorted(maps.Keys(m.trusted)), m.acquaintances()...)
	}
	m.admitted.sample = min(m.admitted.sample+max(bits.Len(uint(times))-1, 1), sampleMax)
	m.sampled = now
	m.began, m.strangers = now, 0
	return false, true, false
}

// look begins a new window when it is time, and lets in again whom the filter has kept out for long enough.
func (m *meter) look(now time.Time) (changed bool) {
	if now.Sub(m.began) < Window {
		return false
	}
	before := m.admitted
	few := m.strangers < m.atMost(StrangersMax)/4
	m.began, m.strangers = now, 0
	m.admitted.blocked = slices.DeleteFunc(slices.Clone(m.admitted.blocked), func(mac string) bool {
		s := m.sources[mac]
		return s == nil || !now.Before(s.until)
	})
	for mac, at := range m.trusted {
		if now.Sub(at) >= trustFor {
			delete(m.trusted, mac)
			m.forget(mac)
		}
	}
	if m.admitted.sample > 0 && few && now.Sub(m.sampled) >= BlockFor {
		m.admitted.sample--
		m.sampled = now
		if m.admitted.sample == 0 {
			m.admitted.known = nil
		}
	}
	return !before.equal(m.admitted)
}

// next is when look is to be called although no frame has come; zero is never.
func (m *meter) next() time.Time {
	if m.admitted.sample == 0 && len(m.admitted.blocked) == 0 {
		return time.Time{}
	}
	return m.began.Add(Window)
}

// source finds or makes the record of a source. It is nil where no more are remembered.
func (m *meter) source(mac string, now time.Time) *meterSource {
	if s := m.sources[mac]; s != nil {
		return s
	}
	if len(m.sources) >= sourcesMax {
		if m.admitted.sample > 0 {
			return nil // forged sources push out no other
		}
		m.prune(now)
	}
	s := &meterSource{first: now}
	if m.sources == nil {
		m.sources = make(map[string]*meterSource)
	}
	m.sources[mac] = s
	return s
}

// prune forgets strangers that have not been heard for long, and at least half of all sources, known ones last.
func (m *meter) prune(now time.Time) {
	for mac, s := range m.sources {
		if !s.known() && now.Sub(s.last) >= KnownAfter && !now.Before(s.until) {
			delete(m.sources, mac)
		}
	}
	if len(m.sources) <= sourcesMax/2 {
		return
	}
	macs := make([]string, 0, len(m.sources))
	for mac := range m.sources {
		macs = append(macs, mac)
	}
	known := func(mac string) int {
		if m.sources[mac].known() {
			return 1
		}
		return 0
	}
	slices.SortFunc(macs, func(a, b string) int {
		return cmp.Or(known(a)-known(b), m.sources[a].last.Compare(m.sources[b].last))
	})
	for _, mac := range macs[:len(macs)/2] {
		if !now.Before(m.sources[mac].until) {
			delete(m.sources, mac)
		}
	}
}

// acquaintances lists the known sources, those that have been known for longest.
func (m *meter) acquaintances() (macs []string) {
	for mac, s := range m.sources {
		if _, trusted := m.trusted[mac]; !trusted && s.known() && s.frames <= acquaintanceMax {
			macs = append(macs, mac)
		}
	}
	slices.SortFunc(macs, func(a, b string) int {
		return cmp.Or(m.sources[a].first.Compare(m.sources[b].first), cmp.Compare(a, b))
	})
	return macs[:min(len(macs), knownMax)]
}
