package proof

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A story is a book and the time in it.
type story struct {
	Book
	now     time.Time
	settled bool
	flap    time.Time // when a check last found something new
	asked   time.Time // since when the checks should have found nothing
	alone   bool
}

var subject = Subject{"api", "nftables"}

func newStory() *story { return &story{now: time.Unix(1_700_000_000, 0), settled: true} }

func (s *story) tries(by string, r Result) (changed bool) {
	f := TrialResult{Frontend: netip.MustParseAddrPort("192.0.2.10:6443"), Result: r, Of: 1}
	if r != Served {
		f.Failed = 1
	}
	changed = s.Note(subject, Trying{
		Begun: s.now, At: s.now, By: by, Others: !s.alone, Findings: []TrialResult{f},
		Settled: func(since time.Time) bool {
			s.asked = since
			return s.settled && !s.flap.After(since)
		},
		Hint: func(Result) string { return "look at the forward chain" },
	})
	s.now = s.now.Add(500 * time.Millisecond)
	return changed
}

func (s *story) unproved() string { return s.Unproved(subject, s.now) }

func TestBook(t *testing.T) {
	t.Run("two failures may be lost packets", func(t *testing.T) {
		s := newStory()
		s.tries("n2", Served)
		s.tries("n3", Silent)
		s.tries("n2", Silent)
		s.tries("n3", Served)
		s.tries("n2", Silent)
		s.tries("n3", Silent)
		if why := s.unproved(); why != "" {
			t.Error(why)
		}
	})
	t.Run("three in a row are not", func(t *testing.T) {
		s := newStory()
		s.tries("n2", Silent)
		s.tries("n3", Silent)
		if changed := s.tries("n2", Silent); !changed {
			t.Error("nothing has changed")
		}
		want := "a connection from n2 and n3 to 192.0.2.10:6443 is not answered, while the checks of the backends succeed: " +
			"look at the forward chain"
		if why := s.unproved(); why != want {
			t.Errorf("%q, want %q", why, want)
		}
		if changed := s.tries("n3", Served); !changed || s.unproved() != "" || s.Entry(subject).By != "n3" {
			t.Errorf("what is served counts at once: %+v", s.Entry(subject))
		}
	})
	t.Run("one node alone may be cut off itself", func(t *testing.T) {
		s := newStory()
		for range 5 {
			s.tries("n2", Silent)
		}
		if s.unproved() != "" {
			t.Error("there is another to ask")
		}
		if s.alone = true; !s.tries("n2", Silent) {
			t.Error("there is nobody else to ask")
		}
	})
	t.Run("the reason follows what is found", func(t *testing.T) {
		s := newStory()
		for range 2 {
			s.tries("n2", Silent)
			s.tries("n3", Silent)
		}
		s.tries("n2", Refused)
		s.tries("n3", Silent)
		s.tries("n2", Refused)
		s.tries("n3", Refused)
		if why := s.unproved(); !strings.Contains(why, "not answered") {
			t.Errorf("one or two may be by chance: %q", why)
		}
		if changed := s.tries("n2", Refused); changed || !strings.Contains(s.unproved(), "is refused") {
			t.Errorf("%q", s.unproved())
		}
	})
	t.Run("a server that ends is the checks' business", func(t *testing.T) {
		s := newStory()
		s.settled = false
		for range 3 {
			s.tries("n2", Refused)
			s.tries("n3", Refused)
		}
		if s.unproved() != "" {
			t.Error("the checks have not ended yet")
		}
		if s.settled = true; !s.tries("n2", Refused) || !strings.Contains(s.unproved(), "refused") {
			t.Errorf("%q", s.unproved())
		}
	})
	t.Run("a server that comes and goes explains no failures after it", func(t *testing.T) {
		s := newStory()
		s.tries("n2", Silent)
		s.flap = s.now
		for range 2 {
			s.tries("n3", Silent)
			s.tries("n2", Silent)
		}
		if s.unproved() == "" {
			t.Error("four have failed since")
		}
	})
	t.Run("checks are hurried from the first failure on", func(t *testing.T) {
		s := newStory()
		if s.tries("n2", Silent); s.asked.IsZero() {
			t.Error("nobody has asked")
		}
	})
	t.Run("the pause doubles", func(t *testing.T) {
		s := newStory()
		fails := func() {
			for range 2 {
				s.tries("n2", Silent)
				s.tries("n3", Silent)
			}
		}
		for pause := firstPause; pause <= longestPause; pause *= 2 {
			s.Begin(subject)
			fails()
			if s.now = s.now.Add(pause - 10*time.Second); s.unproved() == "" {
				t.Errorf("tried again before %v", pause)
			}
			if s.now = s.now.Add(10 * time.Second); s.unproved() != "" {
				t.Errorf("not tried again after %v", pause)
			}
		}
		s.Begin(subject)
		fails()
		if s.Forgive(); s.unproved() != "" {
			t.Error("a new configuration may have mended it")
		}
	})
}

func TestSomeBackendsFail(t *testing.T) {
	s := newStory()
	var found TrialResult
	note := func(by string) {
		found.Frontend = netip.MustParseAddrPort("192.0.2.10:6443")
		s.Note(subject, Trying{
			Begun: s.now, At: s.now, By: by, Others: true, Settled: func(time.Time) bool { return true },
			Hint: func(Result) string { return "" }, Findings: []TrialResult{found},
		})
		s.now = s.now.Add(time.Second)
	}
	for _, found = range []TrialResult{
		{Result: Silent, Of: 6, Failed: 2},
		{Result: Served, Of: 6, Late: 2}, // the second SYN went to another backend
	} {
		s.Forgive()
		s.Begin(subject)
		note("n2")
		note("n3")
		note("n2")
		if why := s.unproved(); !strings.HasPrefix(why, "2 of 6 connections from n2 and n3 to 192.0.2.10:6443 fail") {
			t.Errorf("%+v: %q", found, why)
		}
	}
	found = TrialResult{Result: Served, Of: 6, Late: 1}
	if note("n2"); s.unproved() != "" {
		t.Error("one lost packet is no failure")
	}
}
