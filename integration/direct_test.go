package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
)

// crowd is how many connections are open while something happens, from clients
// on the link and behind a router.
const crowd = 300

// TestDirectKeepsConnections breaks the holder in every way while hundreds of
// connections are open. None may break, except those to a server that is lost itself:
// they must be reset and not hang.
func TestDirectKeepsConnections(t *testing.T) {
	if p := plane(); p != "" && p != string(balancer.Direct) {
		t.Skip("another data plane is tested")
	}
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel() // most of it is waiting
			w := newWorld(t, family)
			doctors := w.doctors(t, "n1", "n2", "n3")
			lb := balance{name: "same", port: scene.Port, backend: scene.Port, scheduler: "rr",
				nodes: []string{"n1", "n2", "n3"}, check: asked}
			w.start(t, string(balancer.Direct), []balance{lb})
			w.resolve(t)
			for i := range w.apps[:worker] {
				w.ready(t, i)
				w.await(t, i, lb.name, served(balancer.Direct, 3))
			}
			t.Run("strays are metered", w.metered)
			for _, tt := range []struct {
				name string
				// run lets something happen, to the holder if to anybody, and
				// returns the machine whose connections may be reset.
				run func(t *testing.T, holder int) (lost string)
			}{
				{"transfer", w.transfer},
				{"strays flood", w.flooded},
				{"SIGKILL", w.killed},
				{"SIGTERM", w.stopped},
				{"SIGSTOP and SIGCONT", w.frozen},
				{"rolling restart", w.rolling},
				{"a backend drains", func(t *testing.T, _ int) string { return w.drains(t, doctors, lb) }},
				{"a backend leaves", func(t *testing.T, _ int) string { return w.leaves(t, doctors) }},
				{"link down", w.linkDown},
				{"cable", w.unplugged},
				{"the switch restarts", w.switchRestarts},
				{"host loss", w.hostLost},
			} {
				t.Run(tt.name, func(t *testing.T) {
					for i := range w.apps[:worker] {
						w.ready(t, i)
						w.await(t, i, lb.name, served(balancer.Direct, 3))
					}
					w.reached(t, w.client, lb)
					holder := w.holder(t)
					w.keeps(t, lb, func() string { return tt.run(t, holder) })
				})
			}
			w.oneAnswer(t)
		})
	}
}

// keeps opens connections, lets something happen, and counts what is left.
func (w *world) keeps(t *testing.T, lb balance, happens func() (lost string)) {
	t.Helper()
	var all []*lab.Conns
	for from, n := range map[*lab.Machine]int{w.client: crowd * 2 / 3, w.far: crowd / 3} {
		conns, err := from.OpenConns(t.Context(),
			lab.LongConns{Target: w.target(lb.port), N: n, Every: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		all = append(all, conns)
	}
	lost := happens()
	// A packet that was lost is sent again after 200 ms, 400 ms, and so on.
	var n lab.ConnCount
	ctx := patient(t)
	for _, conns := range all {
		c := conns.Await(ctx, time.Second)
		n.OK, n.Broken, n.Hung, n.Lost = n.OK+c.OK, n.Broken+c.Broken, n.Hung+c.Hung, append(n.Lost, c.Lost...)
	}
	t.Logf("of %d connections %d go on, %d were reset, %d hang", crowd, n.OK, n.Broken, n.Hung)
	for _, l := range n.Lost {
		switch {
		case l.Server != lost:
			t.Errorf("a connection to %s is lost: %v", l.Server, l.Err)
		case l.Err == nil:
			t.Errorf("a connection to %s, which is gone, hangs", l.Server)
		}
	}
	if n.OK < crowd/3 {
		t.Errorf("only %d of %d connections go on", n.OK, crowd)
	}
}

// moved waits until another peer holds.
func (w *world) moved(t *testing.T, from int) {
	t.Helper()
	eventually(t, func() error {
		for _, i := range others(from) {
			if s, err := w.apps[i].status(t.Context()); err == nil && s.Group.Holding {
				return nil
			}
		}
		return fmt.Errorf("nobody took over from %s", w.nodes[from].Name)
	})
}

func (w *world) transfer(t *testing.T, holder int) string {
	command(t, w.apps[holder].path+".sock", "transfer")
	w.moved(t, holder)
	return ""
}

func (w *world) killed(t *testing.T, holder int) string {
	w.apps[holder].proc.Kill()
	w.moved(t, holder)
	time.Sleep(2 * time.Second)
	w.apps[holder].start(t)
	w.ready(t, holder)
	return ""
}

func (w *world) stopped(t *testing.T, holder int) string {
	w.apps[holder].stop(t)
	w.moved(t, holder)
	time.Sleep(2 * time.Second)
	w.apps[holder].start(t)
	w.ready(t, holder)
	return ""
}

func (w *world) frozen(t *testing.T, holder int) string {
	if err := w.apps[holder].freeze(); err != nil {
		t.Fatal(err)
	}
	w.moved(t, holder)
	time.Sleep(2 * time.Second)
	if err := w.apps[holder].thaw(); err != nil {
		t.Fatal(err)
	}
	w.ready(t, holder)
	return ""
}

// rolling restarts all peers, one after the other, as an upgrade does.
func (w *world) rolling(t *testing.T, _ int) string {
	for i := range w.apps[:worker] {
		w.apps[i].stop(t)
		w.apps[i].start(t)
		w.ready(t, i)
	}
	return ""
}

// drains: a server says that it is about to stop. It keeps what it has, and
// gets nothing new.
func (w *world) drains(t *testing.T, doctors []*doctor, lb balance) string {
	doctors[1].readyz.Store(http.StatusInternalServerError)
	w.await(t, w.holder(t), lb.name,
		func(s balancer.LoadBalancerStatus) bool { return s.Backends[1].State == balancer.Draining })
	w.passesOver(t, lb, "n2")
	time.Sleep(2 * time.Second)
	doctors[1].readyz.Store(http.StatusOK)
	return ""
}

// passesOver waits until a server gets no new connections.
func (w *world) passesOver(t *testing.T, lb balance, server string) {
	t.Helper()
	eventually(t, func() error {
		for range 60 {
			c, a, err := dial(t.Context(), w.client, w.target(lb.port))
			if err != nil {
				return err
			}
			c.Close()
			if a.Server == server {
				return fmt.Errorf("%s gets new connections", server)
			}
		}
		return nil
	})
}

// leaves: a server is taken out. The connections of the others stay where they
// are, also when it comes back.
func (w *world) leaves(t *testing.T, doctors []*doctor) string {
	doctors[1].say(http.StatusServiceUnavailable)
	for i := range w.apps[:worker] {
		w.await(t, i, "same", func(s balancer.LoadBalancerStatus) bool { return s.Backends[1].State == balancer.Down })
	}
	time.Sleep(2 * time.Second)
	doctors[1].say(http.StatusOK)
	for i := range w.apps[:worker] {
		w.await(t, i, "same", served(balancer.Direct, 3))
	}
	return "n2"
}

func (w *world) linkDown(t *testing.T, holder int) string {
	return w.off(t, holder, w.nodes[holder].LinkDown, w.nodes[holder].LinkUp)
}

func (w *world) unplugged(t *testing.T, holder int) string {
	return w.off(t, holder, w.nodes[holder].Unplug, w.nodes[holder].Plug)
}

// off cuts a machine off. What is opened meanwhile stays where it is when the machine is back. It comes from an address
// of which the machine has no connections: docs/data-planes.md says what a port that is used again may do.
func (w *world) off(t *testing.T, holder int, down, up func() error) string {
	if err := down(); err != nil {
		t.Fatal(err)
	}
	w.moved(t, holder)
	time.Sleep(3 * time.Second)
	later, err := w.s1.OpenConns(t.Context(),
		lab.LongConns{Target: w.target(scene.Port), N: crowd, Every: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	if err := up(); err != nil {
		t.Fatal(err)
	}
	w.ready(t, holder)
	w.await(t, holder, "same", served(balancer.Direct, 3))
	for _, l := range later.Await(patient(t), time.Second).Lost {
		t.Errorf("opened at %s while %s was away, and lost: %v", l.Server, w.nodes[holder].Name, l.Err)
	}
	return w.nodes[holder].Name
}

// switchRestarts cuts all nodes off at once, for about as long as checks need to call their servers down. None is lost.
func (w *world) switchRestarts(t *testing.T, _ int) string {
	for _, n := range w.nodes[:worker] {
		if err := n.Unplug(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3300 * time.Millisecond)
	for _, n := range w.nodes[:worker] {
		if err := n.Plug(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range w.apps[:worker] {
		w.ready(t, i)
		w.await(t, i, "same", served(balancer.Direct, 3))
	}
	return ""
}

// hostLost is the last one: the host does not come back.
func (w *world) hostLost(t *testing.T, holder int) string {
	if err := w.nodes[holder].Unplug(); err != nil {
		t.Fatal(err)
	}
	w.apps[holder].proc.Kill()
	w.moved(t, holder)
	return w.nodes[holder].Name
}

// A doctor answers the health checks of the server beside it.
type doctor struct{ readyz, livez atomic.Int64 }

func (d *doctor) say(status int64) {
	d.readyz.Store(status)
	d.livez.Store(status)
}

const doctorPort = 8080

// asked is the check that asks the doctors.
var asked = fmt.Sprintf("type: http, port: %d", doctorPort)

// doctors are those of the servers on the given machines.
func (w *world) doctors(t *testing.T, names ...string) []*doctor {
	t.Helper()
	var all []*doctor
	for _, name := range names {
		d := &doctor{}
		d.say(http.StatusOK)
		mux := http.NewServeMux()
		mux.HandleFunc("/readyz", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(int(d.readyz.Load())) })
		mux.HandleFunc("/livez", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(int(d.livez.Load())) })
		w.http(t, w.machine(name), doctorPort, mux)
		all = append(all, d)
	}
	return all
}

func (w *world) http(t *testing.T, n *lab.Machine, port uint16, h http.Handler) {
	t.Helper()
	ln, err := n.Listen(t.Context(), netip.AddrPortFrom(w.addr(n.Name), port))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	ended := make(chan error, 1)
	go func(ln net.Listener) { ended <- s.Serve(ln) }(ln)
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}
