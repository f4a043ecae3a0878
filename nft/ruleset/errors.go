package ruleset

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// explain turns the kernel's answer about a table into a sentence that says what is
// missing and what to do.
func explain(err error, t Table) error {
	if err == nil {
		return nil
	}
	for _, r := range remedies {
		if errors.Is(err, r.errno) {
			return fmt.Errorf("table %v: %s (%w)", t, r.text, err)
		}
	}
	return fmt.Errorf("table %v: %w; `nft list ruleset` and `dmesg` may tell more", t, err)
}

var remedies = [...]struct {
	errno unix.Errno
	text  string
}{
	{unix.EPERM, notPermitted},
	{unix.EACCES, notPermitted},
	{unix.EPROTONOSUPPORT, "the kernel has no nfnetlink: load the module with `modprobe nf_tables`, " +
		"or use a kernel with CONFIG_NF_TABLES"},
	{unix.EAFNOSUPPORT, "the kernel lacks this family of nf_tables: " +
		"use a kernel with CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_ARP and CONFIG_NF_TABLES_NETDEV"},
	{unix.EOPNOTSUPP, "the kernel lacks this family or chain of nf_tables: `modprobe nf_tables nft_chain_nat`, " +
		"or use Linux 5.2 or newer with CONFIG_NF_TABLES and CONFIG_NFT_NAT"},
	{unix.EINVAL, "the kernel does not understand the request: `modprobe nf_tables`, " +
		"or use Linux 5.2 or newer with CONFIG_NF_TABLES"},
	{unix.ENOENT, "the kernel lacks an expression that the rules use, or the interface is gone: " +
		"`modprobe -a nft_chain_nat nft_ct nft_numgen nft_hash nft_masq nft_reject_inet`, " +
		"or use Linux 5.2 or newer with CONFIG_NFT_*"},
	{unix.EBUSY, "somebody else holds this table: see `nft list ruleset` for the program that owns it"},
	{unix.ENOBUFS, "the kernel has no room for the answers of one transaction: " +
		"raise net.core.rmem_default, or use fewer load balancers"},
}

const notPermitted = "the kernel refuses changes of nf_tables: run as root, " +
	"or give the container the capability NET_ADMIN"
