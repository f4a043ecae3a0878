package node

import (
	"errors"
	"net/netip"

	"appliance/arp"
	"appliance/ipvs"
	"appliance/nft"
)

// Cleanup removes every address, service and rule that a crashed appliance left in the kernel, and says what it
// removed. vips are for kernels before 5.18, which do not remember whose an address is.
func Cleanup(vips []netip.Addr) (removed []string, err error) {
	var problems []error
	for _, room := range []func() ([]string, error){
		// The address first: nobody reaches a forwarder that loses its rules.
		func() ([]string, error) { return arp.Cleanup(vips) },
		ipvs.Cleanup,
		nft.Cleanup,
	} {
		some, err := room()
		removed = append(removed, some...)
		problems = append(problems, err)
	}
	return removed, errors.Join(problems...)
}
