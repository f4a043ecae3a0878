package ipvs_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"appliance/integration/vm"
)

// guest tells the test binary that it runs in the virtual machine.
const guest = "APPLIANCE_IPVS_GUEST"

// TestVM runs TestGuest of this test binary in a virtual machine whose kernel has ip_vs.
func TestVM(t *testing.T) {
	if os.Getenv(guest) != "" {
		t.Skip("this is the machine")
	}
	if testing.Short() {
		t.Skip("boots a virtual machine; run without -short")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Emulation may be very slow, so the tests may take long as long as they make progress.
	out := t.Output()
	code, err := vm.Run(t.Context(), vm.Spec{
		Env:     []string{guest + "=1"},
		Timeout: time.Hour, Silence: 8 * time.Minute, Stdout: out, Stderr: out,
	}, self, "-test.run=^TestGuest$", "-test.v", "-test.timeout=1h")
	switch {
	case errors.Is(err, vm.ErrUnavailable):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	case code != 0:
		t.Fatalf("the tests in the machine failed with exit code %d", code)
	}
}
