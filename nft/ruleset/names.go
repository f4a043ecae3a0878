package ruleset

import "github.com/google/nftables"

// Names of our tables. There is one for each concern, so that each is replaced as a
// whole, in one transaction, without a look at the others. Other versions, and
// Cleanup after them, know these names: they never change.
const (
	ARPFilterTable      = "appliance_silence"
	RedirectTable       = "appliance_redirect"
	NATTable            = "appliance_nat"
	MasqueradeTable     = "appliance_ipvs"
	RejectTable         = "appliance_refuse"
	DirectTable         = "appliance_direct"
	ACLTable            = "appliance_access"
	ResetTable          = "appliance_refusals"
	PreviousHolderTable = "appliance_handback"
	LogTable            = "appliance_log"
	TunnelTable         = "appliance_tunnel"
)

// Ours are the tables that Cleanup removes and Monitor looks after.
func Ours() []Table {
	return []Table{
		{Family: nftables.TableFamilyARP, Name: ARPFilterTable},
		{Family: nftables.TableFamilyINet, Name: RedirectTable},
		{Family: nftables.TableFamilyIPv4, Name: NATTable},
		{Family: nftables.TableFamilyIPv6, Name: NATTable},
		{Family: nftables.TableFamilyINet, Name: MasqueradeTable},
		{Family: nftables.TableFamilyINet, Name: RejectTable},
		{Family: nftables.TableFamilyINet, Name: ACLTable},
		{Family: nftables.TableFamilyINet, Name: LogTable},
		{Family: nftables.TableFamilyIPv4, Name: PreviousHolderTable},
		{Family: nftables.TableFamilyIPv6, Name: PreviousHolderTable},
		{Family: nftables.TableFamilyIPv4, Name: ResetTable},
		{Family: nftables.TableFamilyIPv6, Name: ResetTable},
		{Family: nftables.TableFamilyNetdev, Name: DirectTable},
		{Family: nftables.TableFamilyIPv4, Name: DirectTable},
		{Family: nftables.TableFamilyIPv6, Name: DirectTable},
		{Family: nftables.TableFamilyNetdev, Name: TunnelTable},
		{Family: nftables.TableFamilyIPv4, Name: TunnelTable},
		{Family: nftables.TableFamilyIPv6, Name: TunnelTable},
	}
}
