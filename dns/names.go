package dns

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A Config says how names are looked up.
type Config struct {
	// Nameservers are asked instead of those in /etc/resolv.conf, if there are any.
	Nameservers []netip.AddrPort
	// Shortest and Longest bound the time from one answer to the next question, which is the life of the records. A
	// name of /etc/hosts, whose entries have no life, is looked up each Shortest.
	Shortest, Longest time.Duration
	// Kept is what Keep was last given, in an earlier life.
	Kept []byte
	// Keep, if not nil, is given all answers when one has changed.
	Keep func([]byte) error
	Log  *slog.Logger
}

// An NameAnswer is what is known of a name. The addresses stay when a later look-up fails.
type NameAnswer struct {
	Addrs []netip.Addr // sorted; none if the name never had an answer
	At    time.Time    // of the last answer
	Error string       // why the last look-up failed; empty if it did not
}

// Names are names that are followed.
type Names struct {
	cfg     Config
	lookUp  func(ctx context.Context, name string) (four, six found, ttl time.Duration)
	changed chan struct{}
	wake    chan struct{}
	keeping sync.Mutex // held while answers are handed to Keep, so that older ones never come last

	mu      sync.Mutex
	wanted  []string
	answers map[string]*answer
}

type answer struct {
	four, six []netip.Addr
	at        time.Time
	err       string
}

// lookUpWithin bounds one look-up: two servers, each silent for the 5 s that resolv.conf(5) has as default.
const lookUpWithin = 10 * time.Second

// keptFormat grows when an older version would misread what is kept.
const keptFormat = 1

type kept struct {
	Format int                   `json:"format"`
	Names  map[string]keptAnswer `json:"names"`
}

type keptAnswer struct {
	Addrs []netip.Addr `json:"addresses"`
	At    time.Time    `json:"at"`
}

// Open makes Names that know what was kept. What is kept by a later version, or damaged, is not used.
func Open(cfg Config) *Names {
	n := &Names{
		cfg: cfg, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), answers: make(map[string]*answer),
	}
	n.lookUp = (&resolver{servers: cfg.Nameservers}).lookUp
	var k kept
	if len(cfg.Kept) == 0 {
		return n
	}
	if err := json.Unmarshal(cfg.Kept, &k); err != nil || k.Format != keptFormat {
		cfg.Log.Warn("the addresses of names that were kept are of no use; they are looked up", "error", err)
		return n
	}
	for name, one := range k.Names {
		a := &answer{at: one.At}
		for _, addr := range one.Addrs {
			if addr.Is4() {
				a.four = append(a.four, addr)
			} else if addr.Is6() {
				a.six = append(a.six, addr)
			}
		}
		n.answers[name] = a
	}
	return n
}

// Set says which names are followed.
func (n *Names) Set(names []string) {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	n.mu.Lock()
	same := slices.Equal(names, n.wanted)
	n.wanted = names
	n.mu.Unlock()
	if !same {
		signal(n.wake)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is pending
	}
}

// Changed gets a value when an answer has changed.
func (n *Names) Changed() <-chan struct{} { return n.changed }

// Known is what is known of each followed name.
func (n *Names) Known() map[string]NameAnswer {
	n.mu.Lock()
	defer n.mu.Unlock()
	known := make(map[string]NameAnswer, len(n.wanted))
	for _, name := range n.wanted {
		if a := n.answers[name]; a != nil {
			known[name] = NameAnswer{Addrs: slices.Concat(a.four, a.six), At: a.at, Error: a.err}
		} else {
			known[name] = NameAnswer{Error: "it is being looked up"}
		}
	}
	return known
}

// Await looks up the followed names of which nothing is known, and returns when each has been tried or ctx ends.
func (n *Names) Await(ctx context.Context) {
	n.mu.Lock()
	var todo []string
	for _, name := range n.wanted {
		if n.answers[name] == nil {
			todo = append(todo, name)
		}
	}
	n.mu.Unlock()
	var asking sync.WaitGroup
	for _, name := range todo {
		asking.Go(func() { n.ask(ctx, name) })
	}
	asking.Wait()
}

// Run follows the names until ctx ends.
func (n *Names) Run(ctx context.Context) error {
	var following sync.WaitGroup
	defer following.Wait()
	stops := make(map[string]context.CancelFunc)
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	for {
		n.mu.Lock()
		wanted := n.wanted
		n.mu.Unlock()
		for name, stop := range stops {
			if !slices.Contains(wanted, name) {
				stop()
				delete(stops, name)
			}
		}
		for _, name := range wanted {
			if stops[name] != nil {
				continue
			}
			one, stop := context.WithCancel(ctx)
			stops[name] = stop
			following.Go(func() { n.follow(one, name) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		}
	}
}

// follow looks one name up again and again.
func (n *Names) follow(ctx context.Context, name string) {
	failures := 0
	for {
		ttl, ok := n.ask(ctx, name)
		pause := min(max(ttl, n.cfg.Shortest), n.cfg.Longest)
		if ok {
			failures = 0
		} else {
			pause = min(n.cfg.Shortest<<min(failures, 10), n.cfg.Longest)
			failures++
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ask looks a name up and notes the answer. ok is false if some of it is not known.
func (n *Names) ask(ctx context.Context, name string) (ttl time.Duration, ok bool) {
	within, cancel := context.WithTimeout(ctx, lookUpWithin)
	defer cancel()
	four, six, ttl := n.lookUp(within, name)
	if ctx.Err() != nil {
		return 0, false // it was cut short, so it says nothing
	}
	n.mu.Lock()
	a := n.answers[name]
	if a == nil {
		a = &answer{}
		n.answers[name] = a
	}
	before, was := *a, a.err
	a.note(four, six, time.Now())
	now := *a
	first := was == "" && now.err != ""
	moved := !slices.Equal(before.four, now.four) || !slices.Equal(before.six, now.six)
	n.mu.Unlock()

	addrs := slices.Concat(now.four, now.six)
	switch {
	case moved:
		n.cfg.Log.Info("a name has other addresses", "name", name, "addresses", addrs,
			"were", slices.Concat(before.four, before.six))
	case first && len(addrs) > 0:
		n.cfg.Log.Warn("a name cannot be looked up; its last addresses stay", "name", name, "addresses", addrs,
			"error", now.err)
	case first:
		n.cfg.Log.Warn("a name has no address; its server is down until it has", "name", name, "error", now.err)
	case was != "" && now.err == "":
		n.cfg.Log.Info("a name is known again", "name", name)
	}
	if moved {
		n.keep()
	}
	if moved || was != now.err {
		signal(n.changed)
	}
	return ttl, now.err == ""
}

// note takes what was found. A family stays as it was unless the DNS says otherwise, and the last addresses of a name
// stay even if it says that there are none: the health of the servers decides, and not a zone that was emptied by
// mistake.
func (a *answer) note(four, six found, now time.Time) {
	a.err = ""
	for _, f := range []found{four, six} {
		if f.err != nil && !f.none {
			a.err = f.err.Error()
		}
	}
	if len(four.addrs)+len(six.addrs) == 0 {
		if a.err == "" {
			a.err = "the DNS knows no address of it"
		}
		return
	}
	a.at = now
	if len(four.addrs) > 0 || four.none {
		a.four = four.addrs
	}
	if len(six.addrs) > 0 || six.none {
		a.six = six.addrs
	}
}

// keep hands over all answers of followed names.
func (n *Names) keep() {
	if n.cfg.Keep == nil {
		return
	}
	n.keeping.Lock()
	defer n.keeping.Unlock()
	k := kept{Format: keptFormat, Names: make(map[string]keptAnswer)}
	for name, a := range n.Known() {
		if len(a.Addrs) > 0 {
			k.Names[name] = keptAnswer{a.Addrs, a.At}
		}
	}
	data, err := json.Marshal(k)
	if err == nil {
		err = n.cfg.Keep(data)
	}
	if err != nil {
		n.cfg.Log.Warn("the addresses of names cannot be kept; a restart without DNS would begin with older ones",
			"error", err)
	}
}
