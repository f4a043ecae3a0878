package main

import (
	"runtime"
	"strings"
)

// excuses are the reasons to skip a test that the set-up cannot remove.
var excuses = []struct{ reason, why string }{
	{"this is the machine", "it is about starting the virtual machine, and runs outside of it"},
	{"TestVM runs it in a virtual machine", "TestVM does"},
	{"TestOtherInterfacesInVM runs it in a virtual machine", "TestOtherInterfacesInVM does"},
	{"the integration tests run this in a virtual machine", "TestOtherInterfacesInVM does"},
	{"this kernel has no interfaces of kind", "this machine's kernel; TestOtherInterfacesInVM has another one"},
	{"takes the container that TestGuest makes", "TestGuest makes it, in the virtual machine"},
	{"this kernel has ip_vs", "this machine's kernel; nothing is missing"},
	{"make compare runs this in a virtual machine", "make compare does; emulation takes minutes"},
	{"make soak runs it", "it takes ten minutes or more"},
	{"make guides runs it", "it counts failed requests, on a machine that does nothing else"},
	{"make skew runs it", "it needs the program of another version"},
	{"a data plane is forced", "APPLIANCE_TEST_PLANE is set"},
	{"another data plane is tested", "APPLIANCE_TEST_PLANE is set"},
	{"the unit stage runs it again without", "the race detector makes virtual time too slow"},
	{"run it with -soak", "for hand-made runs of any length"},
	{"too busy to tell", "the machine itself stood still"},
	{"this host has no IPv", "this machine's addresses"},
	{"files open already", "what the test binary itself has open"},
}

// excuse tells whether a test may be skipped for this reason, and why.
func excuse(reason string) (bool, string) {
	if runtime.GOARCH != "amd64" && strings.Contains(reason, "no virtual machine here") {
		return true, "integration/vm/fetch-kernel.sh knows kernels for amd64 only"
	}
	for _, e := range excuses {
		if strings.Contains(reason, e.reason) {
			return true, e.why
		}
	}
	return false, ""
}
