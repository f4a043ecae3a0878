package integration

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/integration/vm"
	"appliance/lab"
)

// TestGroupOnOtherInterfaces: a VIP on an interface that is built on top of a card fails
// over as it does on the card itself.
func TestGroupOnOtherInterfaces(t *testing.T) {
	if plane() != "" {
		t.Skip("a data plane is forced")
	}
	for _, k := range []struct {
		name   string
		stack  lab.Stack
		family scene.Family
		vm     bool // takes a kernel that not every machine has
	}{
		{"bridge", lab.Bridge, scene.IPv6, false},
		{"VLAN on bond", lab.VLANOnBond, scene.IPv4, true},
	} {
		t.Run(k.name, func(t *testing.T) {
			if k.vm && os.Getenv(inVM) == "" {
				t.Skip("TestOtherInterfacesInVM runs it in a virtual machine, whose kernel has this")
			}
			tr := serve(t, scene.Setup{Family: k.family, Stacked: true, Stack: k.stack, Emulated: k.vm})
			tr.served(t, balancer.Direct, 0, 1, 2)
			open := tr.open(t)
			holder := tr.holder(t, 0, 1, 2)
			killed := time.Now()
			tr.app.Kill(holder)
			tr.holder(t, others(holder)...)
			tr.steady(t, killed)
			tr.goOn(t, open, fmt.Sprintf("node %d was killed", holder+1))
			tr.silent(t, holder, time.Now())
			back(t, tr, holder)
			cable(t, tr, tr.holder(t, 0, 1, 2))
			tr.served(t, balancer.Direct, 0, 1, 2)
			tr.oneAnswer(t)
		})
	}
}

// TestOtherInterfacesInVM runs TestGroupOnOtherInterfaces, and the tests of arp and nft
// that need VLANs and bonds, in a virtual machine whose kernel has them.
func TestOtherInterfacesInVM(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine; run without -short")
	}
	inputs(t)
	dir := t.TempDir()
	var script strings.Builder
	script.WriteString("set -e\n")
	want := []struct {
		pkg   string
		tests []string
	}{
		{"arp", []string{"TestVLANAndBondAsInterface/VLAN", "TestVLANAndBondAsInterface/bond", "TestVLANBesideTheInterface"}},
		{"nft/direct", []string{"TestDirectOnOtherInterfaces/vlan", "TestDirectOnOtherInterfaces/bond",
			"TestDirectOnOtherInterfaces/bridge_on_vlan_on_bond", "TestDirectRefusesBondsOfManyAddresses"}},
		{"integration", []string{"TestGroupOnOtherInterfaces/VLAN_on_bond"}},
	}
	for _, of := range want {
		// Without the race detector, which takes too long there.
		file := strings.ReplaceAll(of.pkg, "/", "-")
		out, err := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, file), "appliance/"+of.pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("build the tests of %s: %v\n%s", of.pkg, err, out)
		}
		for _, name := range of.tests {
			run := "^" + strings.ReplaceAll(name, "/", "$/^") + "$"
			script.WriteString("./" + file + " -test.v -test.timeout=1h -test.run='" + run + "'\n")
		}
	}
	var said bytes.Buffer
	runInVM(t, vm.Spec{Dir: dir, Stdout: io.MultiWriter(t.Output(), &said)}, "/bin/sh", "-c", script.String())
	// A test that is skipped there runs nowhere.
	for _, of := range want {
		for _, name := range of.tests {
			if !regexp.MustCompile(`(?m)^ *--- PASS: ` + regexp.QuoteMeta(name) + ` \(`).Match(said.Bytes()) {
				t.Errorf("%s has not passed in the machine", name)
			}
		}
	}
}
