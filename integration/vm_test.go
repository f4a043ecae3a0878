package integration

import (
	"errors"
	"os"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/integration/vm"
)

// inVM tells the test binary that it runs in the machine.
const inVM = "APPLIANCE_TEST_IN_VM"

// TestVM runs TestGuest in a virtual machine whose kernel has ip_vs.
func TestVM(t *testing.T) {
	if os.Getenv(inVM) != "" {
		t.Skip("this is the machine")
	}
	if testing.Short() {
		t.Skip("boots a virtual machine; run without -short")
	}
	inputs(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	runInVM(t, vm.Spec{Stdout: t.Output(), Env: []string{"APPLIANCE_TEST_PLANE=" + string(balancer.IPVS)}},
		self, "-test.run=^TestGuest$", "-test.v", "-test.timeout=1h")
}

// runInVM runs tests in a virtual machine. Emulation may be very slow, so they may take
// long as long as they make progress.
func runInVM(t *testing.T, o vm.Spec, command ...string) {
	t.Helper()
	o.Env = append(o.Env, inVM+"=1", "APPLIANCE_TEST_BINARY="+binary)
	o.Timeout, o.Silence, o.Stderr = time.Hour, 8*time.Minute, t.Output()
	code, err := vm.Run(t.Context(), o, command...)
	switch {
	case errors.Is(err, vm.ErrUnavailable):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	case code != 0:
		t.Fatalf("the tests in the machine failed with exit code %d", code)
	}
}

// TestGuest tests data plane ipvs with a client in every position, and every damage. A
// world takes long to start in the virtual machine, so each family has only one.
func TestGuest(t *testing.T) {
	if os.Getenv(inVM) == "" {
		t.Skip("takes a kernel with ip_vs; TestVM runs it in a virtual machine")
	}
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			began := time.Now()
			lbs := balances(balancer.IPVS)
			lbs[0].check, lbs[0].more = asked, "  logBegin: text\n"
			w := newWorld(t, family)
			doctors := w.doctors(t, lbs[0].nodes...)
			w.start(t, string(balancer.IPVS), lbs)
			t.Logf("ready after %v", time.Since(began).Round(time.Second))
			w.positions(t, balancer.IPVS, lbs)
			t.Logf("tried from everywhere after %v", time.Since(began).Round(time.Second))
			w.behindFences(t, balancer.IPVS, lbs[:2]) // the backends' own port, and another
			t.Logf("tried behind firewalls after %v", time.Since(began).Round(time.Second))
			t.Run("beginnings are logged", func(t *testing.T) {
				w.begins(t, lbs[:1], func(balance) balancer.PlaneName { return balancer.IPVS })
			})
			w.withstands(t, balancer.IPVS, lbs[0], w.holder(t))
			t.Logf("damaged and repaired after %v", time.Since(began).Round(time.Second))
			t.Run("no backend", func(t *testing.T) { w.refuses(t, lbs[0], balancer.IPVS, doctors) })
			t.Logf("done after %v", time.Since(began).Round(time.Second))
		})
	}
}
