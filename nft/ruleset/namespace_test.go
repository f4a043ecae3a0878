package ruleset

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
)

// patience bounds what should take no time: reaching it is a failure.
const patience = 10 * time.Second

// A namespace is a network namespace of its own.
type namespace struct {
	t  *testing.T
	ns netns.NsHandle
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces and nf_tables")
	}
	n := &namespace{t: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		var err error
		n.ns, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() { n.ns.Close() })
	return n
}

// in runs f in the namespace.
func (n *namespace) in(f func()) {
	n.t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		n.t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(n.ns); err != nil {
		n.t.Fatal(err)
	}
	// t.Fatal in f ends the goroutine and runs this, too.
	defer func() {
		if err := netns.Set(home); err == nil {
			runtime.UnlockOSThread()
		}
	}()
	f()
}

func (n *namespace) run(command ...string) {
	n.t.Helper()
	n.in(func() {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			n.t.Fatalf("%v: %v\n%s", command, err, out)
		}
	})
}

// apply makes the namespace's table equal to want.
func (n *namespace) apply(r *Reconciler, want Table) {
	n.t.Helper()
	n.in(func() {
		if _, err := r.Apply(want); err != nil {
			n.t.Fatal(err)
		}
	})
}

// dropRequests is a table of ours that drops ARP requests for an address.
func dropRequests(target netip.Addr) Table {
	return Table{
		Family: nftables.TableFamilyARP, Name: ARPFilterTable,
		Sets: []Set{{Name: "vips", Key: nftables.TypeIPAddr, Elements: []nftables.SetElement{{Key: target.AsSlice()}}}},
		Chains: []Chain{{
			Name: "input",
			Hook: &BaseHook{Kind: nftables.ChainTypeFilter, Num: 0},
			Rules: []Rule{NewRule("drop requests", []expr.Any{
				&expr.Payload{DestRegister: Reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 4}, InSet("vips"),
			}, Verdict(expr.VerdictDrop))},
		}},
	}
}
