package nft

import (
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// socketBuffer holds a whole transaction, which is one message to the kernel,
// and its answers, one for every rule and set, which all come before the first
// is read. The kernel's default of 208 KiB overflows at some hundred rules.
const socketBuffer = 16 << 20

// dial opens a connection to nf_tables in the network namespace of the calling thread.
func dial() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(
		func(c *netlink.Conn) error { return c.SetReadBuffer(socketBuffer) },
		func(c *netlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
	))
}
