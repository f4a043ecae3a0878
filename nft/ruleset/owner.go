package ruleset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// Flags of tables: NFT_TABLE_F_OWNER and NFT_TABLE_F_PERSIST in linux/netfilter/nf_tables.h.
const (
	flagOwner   = 0x2
	flagPersist = 0x4
	flagsOwned  = flagOwner | flagPersist
)

// An Owner owns tables: nobody else can change them, and `nft flush ruleset` passes them
// over. Without it, open connections meet a host without rules until these are repaired,
// and are reset.
//
// The kernel knows the owner by its socket, which stays open as long as the process lives.
// Then the tables stay, without an owner, for the next process or for cleanup. That takes
// Linux 6.9 (NFT_TABLE_F_PERSIST). On older kernels nobody owns the tables: they would go
// with the process, and take open connections with them.
//
// A nil Owner owns nothing. An Owner is safe for concurrent use.
type Owner struct {
	socket *socket
	once   sync.Once
	can    bool
	// commits are the transactions of Reconcilers of this Owner that are counted in the
	// kernel's generation.
	commits atomic.Uint32
}

// NewOwner returns an Owner of tables in the network namespace of the thread that first
// uses it.
func NewOwner() *Owner {
	s := newSocket()
	s.stays = true
	return &Owner{socket: s}
}

// Close gives up the tables: they stay, and the next Owner, in this process or another, takes them. Nothing uses o
// after that.
func (o *Owner) Close() error {
	if o != nil {
		o.socket.expire()
	}
	return nil
}

// owns says whether the kernel lets the Owner own tables.
func (o *Owner) owns() bool {
	if o == nil {
		return false
	}
	o.once.Do(func() {
		conn, err := o.open()
		if err != nil {
			return
		}
		t := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "appliance_owner_probe"})
		conn.DelTable(t)
		o.can = conn.Flush() == nil
	})
	return o.can
}

// progress is the generation of the kernel's tables, and how many of its transactions are
// known to be those of Reconcilers of this Owner; of a nil Owner, none are.
func (o *Owner) progress() (generation, own uint32, err error) {
	if generation, err = o.generation(); err != nil || o == nil {
		return generation, 0, err
	}
	return generation, o.commits.Load(), nil // after it, so that one between the two is no match later
}

// noteCommit notes a transaction that has just succeeded, if nobody else's is in the
// generation that it left behind.
func (o *Owner) noteCommit(before uint32) {
	if o == nil {
		return
	}
	if now, err := o.generation(); err == nil && now == before+1 {
		o.commits.Add(1)
	}
}

// generation is the number of the last transaction that changed any table of this network
// namespace.
func (o *Owner) generation() (uint32, error) {
	exchange := newSocket().exchange
	if o.owns() {
		exchange = o.exchange
	}
	return generation(nltest.Dial(exchange))
}

// dial is Dial for tables of o.
func (o *Owner) dial() (*nftables.Conn, error) {
	if o.owns() {
		return o.open()
	}
	return Dial()
}

func (o *Owner) open() (*nftables.Conn, error) {
	return nftables.New(nftables.WithTestDial(o.exchange))
}

// exchange is that of the socket. The library has no flags for tables, so they are
// written into its messages.
func (o *Owner) exchange(requests []netlink.Message) ([]netlink.Message, error) {
	for _, m := range requests {
		if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE {
			// NFTA_TABLE_FLAGS is the last attribute.
			binary.BigEndian.PutUint32(m.Data[len(m.Data)-4:], flagsOwned)
		}
	}
	return o.socket.exchange(requests)
}

// adopt makes o the owner of a table that another process has left. It returns false if
// the table must be replaced for that.
func (o *Owner) adopt(conn *nftables.Conn, t Table, have kernelTable) (done bool, err error) {
	switch {
	case have.flags&flagOwner != 0 || !o.owns():
		return true, nil // ours, or somebody's who will object when it is to be changed
	case have.flags&flagPersist == 0:
		return false, nil // of a version that owned nothing: the kernel makes nobody its owner
	}
	conn.AddTable(t.Kernel())
	return true, conn.Flush()
}

// explainOwned is explain for changes of a table that the kernel has.
func explainOwned(err error, t Table, flags uint32) error {
	if errors.Is(err, unix.EPERM) && flags&flagOwner != 0 {
		return fmt.Errorf("table %v belongs to another process, which alone can change it: "+
			"stop the appliance that still runs on this host (%w)", t, err)
	}
	return explain(err, t)
}
