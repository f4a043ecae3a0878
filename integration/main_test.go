package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/integration/scene"
	"appliance/lab"
)

// binary is the program under test, built once by TestMain. With
// APPLIANCE_TEST_BINARY in the environment it is that one.
var binary = os.Getenv("APPLIANCE_TEST_BINARY")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getenv(noNFTables) != "" {
		fmt.Fprintln(os.Stderr, withoutNFTables(os.Args[1:]))
		return 1
	}
	if name := os.Getenv(standIn); name != "" {
		fmt.Fprintln(os.Stderr, standsFor(name, os.Args[1:]))
		return 1
	}
	if binary == "" {
		built, remove, err := scene.Compile()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer remove()
		binary = built
	}
	each, err := startTime()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	patience = min(max(patience, 3000*each), 5*time.Minute)
	return m.Run()
}

// patience bounds every wait of these tests. A test must not fail because its machine is
// slow, so patience grows with the time that the program takes to start. The benchmarks
// measure what has to be fast.
var patience = 30 * time.Second

// startTime is how long the program takes to start, averaged over ten times.
func startTime() (time.Duration, error) {
	const times = 10
	began := time.Now()
	for range times {
		if out, err := exec.Command(binary, "version").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("start the appliance: %w: %s", err, out)
		}
	}
	return time.Since(began) / times, nil
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// plane is the data plane under test; empty is the program's own choice.
func plane() string { return os.Getenv("APPLIANCE_TEST_PLANE") }

// inputs shows the go command what a result depends on. The program is built apart from
// the test, so without this, and without -count=1, the cache would return results of
// another program or data plane. The go command notes only what a running test looks at,
// so TestMain is too early.
func inputs(t *testing.T) {
	t.Helper()
	os.Getenv("APPLIANCE_TEST_BINARY")
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		_, err = os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A trial is a scene on which the appliance serves, watched by clients.
type trial struct {
	*scene.Scene
	app *scene.Appliance
}

// serve builds a scene and waits until the appliance serves it. Where servers
// are left to the caller, so is waiting.
func serve(t *testing.T, o scene.Setup) *trial {
	t.Helper()
	return serveOn(t, o, plane())
}

// serveOn is serve with a data plane.
func serveOn(t *testing.T, o scene.Setup, plane string) *trial {
	t.Helper()
	tr := prepare(t, o, scene.Settings{Binary: binary, Plane: plane})
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	if o.NoServers {
		return tr
	}
	tr.ready(t, 0, 1, 2)
	tr.Ask(t.Context())
	tr.steady(t, time.Now())
	return tr
}

// prepare builds a scene that is watched, and starts nothing on it.
func prepare(t *testing.T, o scene.Setup, settings scene.Settings) *trial {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	inputs(t)
	s, err := scene.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	app, err := s.Appliance(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the appliances said:\n%s", app.Log())
		}
	})
	if err := s.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &trial{Scene: s, app: app}
}

// ready waits until the appliances on the given nodes are.
func (tr *trial) ready(t *testing.T, nodes ...int) {
	t.Helper()
	if err := tr.app.AwaitReady(patient(t), nodes...); err != nil {
		t.Fatal(err)
	}
}

// steady waits until clients are served again after a fault, and logs what
// they saw of it.
func (tr *trial) steady(t *testing.T, fault time.Time) {
	t.Helper()
	o, err := tr.Steady(patient(t), fault)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(o)
}

// open opens connections through the first VIP and closes them at the end of the test.
// Together they use at most a quarter of what a slow machine can do.
func (tr *trial) open(t *testing.T) *lab.Conns {
	t.Helper()
	open, err := tr.Client.OpenConns(t.Context(), lab.LongConns{
		Target: tr.Target(tr.VIPs[0]), N: longConns, Every: 4 * longConns * tr.Pace, Patience: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(open.Close)
	return open
}

const longConns = 30

// goOn checks that data still flows on all connections after an event.
func (tr *trial) goOn(t *testing.T, open *lab.Conns, happened string) {
	t.Helper()
	if n := open.Await(patient(t), 2*time.Second); n.OK != longConns {
		t.Errorf("after %s: %+v", happened, n)
	}
}

// patients are clients who wait as long as it takes. However slow the machine is, and
// even if a packet is lost while rules change, no request may fail; the benchmarks
// measure how long a request takes. The clients end with the test, or with noticed.
func (tr *trial) patients(t *testing.T) (all patients) {
	for _, vip := range tr.VIPs {
		p := tr.Client.Probe(t.Context(), lab.Probe{Target: tr.Target(vip), Every: 2 * time.Millisecond, Patience: patience})
		t.Cleanup(p.Stop)
		all = append(all, p)
	}
	return all
}

type patients []*lab.RunningProbe

// noticed fails the test if a request failed or got no answer during an event that no
// client may notice.
func (all patients) noticed(t *testing.T, what string) {
	t.Helper()
	for _, p := range all {
		p.Finish()
		tries := p.Tries()
		if len(tries) < 100 {
			t.Errorf("a client asked %d times only", len(tries))
		}
		for _, try := range tries {
			if try.Err != nil {
				t.Errorf("%s was noticed: from %s to %s, %v", what,
					try.Start.UTC().Format(stamp), try.End.UTC().Format(stamp), try.Err)
			}
		}
	}
}

// holder waits until one of the given nodes answers for the VIPs.
func (tr *trial) holder(t *testing.T, among ...int) int {
	t.Helper()
	i, err := tr.AwaitHolder(patient(t), func(i int) bool {
		for _, ok := range among {
			if i == ok {
				return true
			}
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// others are the nodes except i.
func others(i int) []int {
	var out []int
	for j := range 3 {
		if j != i {
			out = append(out, j)
		}
	}
	return out
}

// silent checks that node i has not answered for a VIP since t0.
func (tr *trial) silent(t *testing.T, i int, t0 time.Time) {
	t.Helper()
	for k, w := range tr.Resolvers {
		n := 0
		for _, c := range w.Replies().Since(t0) {
			if tr.Index(c.MAC) == i {
				n++
			}
		}
		if n > 0 {
			t.Errorf("node %d has no majority, and claimed %s %d times", i+1, tr.VIPs[k], n)
		}
	}
}

// oneAnswer checks that at no moment two nodes answered for a VIP, and that
// nobody but the nodes did.
func (tr *trial) oneAnswer(t *testing.T) {
	t.Helper()
	if two, frames := tr.Overlap(time.Time{}); two > 0 {
		t.Errorf("two nodes answered at the same time for %s:\n%s", two, frames)
	}
	if s := tr.Strangers(); len(s) > 0 {
		t.Errorf("strangers answered: %v", s)
	}
}
