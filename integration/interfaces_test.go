package integration

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"appliance/integration/vm"
)

// TestOtherInterfacesInVM runs the tests of the rooms arp and nft that take
// VLANs and bonds in a virtual machine whose kernel has them.
func TestOtherInterfacesInVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine; run without -short")
	}
	inputs(t)
	dir := t.TempDir()
	var script strings.Builder
	script.WriteString("set -e\n")
	want := map[string][]string{
		"arp": {"TestVLANAndBondAsInterface/VLAN", "TestVLANAndBondAsInterface/bond", "TestVLANBesideTheInterface"},
		"nft": {"TestDirectOnOtherInterfaces/vlan", "TestDirectOnOtherInterfaces/bond", "TestDirectOnOtherInterfaces/bridge_on_vlan_on_bond", "TestDirectRefusesBondsOfManyAddresses"},
	}
	for room, names := range want {
		// Without the race detector, which takes too long there.
		out, err := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, room), "appliance/"+room).CombinedOutput()
		if err != nil {
			t.Fatalf("build the tests of %s: %v\n%s", room, err, out)
		}
		for _, name := range names {
			run := "^" + strings.ReplaceAll(name, "/", "$/^") + "$"
			script.WriteString("./" + room + " -test.v -test.timeout=5m -test.run='" + run + "'\n")
		}
	}
	var said bytes.Buffer
	both := io.MultiWriter(t.Output(), &said)
	code, err := vm.Run(t.Context(), vm.Options{Dir: dir, Env: []string{inVM + "=1"}, Timeout: 8 * time.Minute, Stdout: both, Stderr: t.Output()},
		"/bin/sh", "-c", script.String())
	switch {
	case errors.Is(err, vm.ErrUnavailable):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	case code != 0:
		t.Fatalf("the tests in the machine failed with exit code %d", code)
	}
	// What is skipped there is tested nowhere.
	for _, names := range want {
		for _, name := range names {
			if !regexp.MustCompile(`(?m)^ *--- PASS: ` + regexp.QuoteMeta(name) + ` \(`).Match(said.Bytes()) {
				t.Errorf("%s has not passed in the machine", name)
			}
		}
	}
}
