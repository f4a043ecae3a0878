package lab

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// A Stack makes the interface with the given name of a card, as operators of
// real machines do. It is called inside the machine.
type Stack func(card, name string) error

// VLANOnBond makes the interface that of VLAN 5 (IEEE 802.1Q) of a bond with
// the card in it.
func VLANOnBond(card, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "bond-" + name
	bond := netlink.NewLinkBond(attrs)
	bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 10
	if err := enslave(card, bond); err != nil {
		return err
	}
	attrs = netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, bond.Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 5}); err != nil {
		return fmt.Errorf("add VLAN %s on %s: %w", name, bond.Name, err)
	}
	return netlink.LinkSetUp(bond)
}

// Bridge makes the interface a bridge with the card in it, as hosts of virtual
// machines have it.
func Bridge(card, name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	snooping := false
	return enslave(card, &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
}

// enslave adds master and puts the card under it.
func enslave(card string, master netlink.Link) error {
	port, err := netlink.LinkByName(card)
	if err != nil {
		return err
	}
	if err := netlink.LinkAdd(master); err != nil {
		return fmt.Errorf("add %s %s: %w", master.Type(), master.Attrs().Name, err)
	}
	if err := netlink.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("put %s under %s: %w", card, master.Attrs().Name, err)
	}
	return netlink.LinkSetUp(port)
}
