package announcing

import (
	"net/netip"
	"time"

	"appliance/configs"
)

// steadyFor is how long a node must have been able to serve a virtual address again before it is announced again.
// Routers punish routes that come and go (RFC 2439), and a backend that flaps makes them do so.
const steadyFor = time.Second

// A SelfView is what a node knows of itself at one moment.
type SelfView struct {
	// Holding says that it holds, Drained that it is not to get clients, by the operator's order.
	Holding, Drained bool
	// Alone says that there are other peers, and none is reached.
	Alone bool
	// Minority says that it has lost the group's majority.
	Minority bool
	// Barred is why the operator's tracks bar the node, or "".
	Barred string
	// Unserved says for each virtual address why it is not served here, or "".
	Unserved map[netip.Addr]string
}

// A verdict is what should become of one virtual address. The zero verdict announces it.
type verdict struct {
	// unable says that the node does not serve: routers have to send clients elsewhere at once.
	unable bool
	// leaves says that the node serves and should not: routers may take their time.
	leaves bool
	// standby says that the node serves, and routers should prefer another.
	standby bool
	why     string
}

// judge decides about one virtual address.
func judge(a configs.AnnounceSettings, v SelfView, vip RoutedVIP, stopping bool) verdict {
	if why := v.Unserved[vip.Addr]; why != "" {
		return verdict{unable: true, why: why}
	}
	switch {
	case stopping:
		return verdict{leaves: true, why: "this node stops"}
	case v.Drained:
		return verdict{leaves: true, why: "this node is drained"}
	case a.HolderOnly && v.Holding:
		return verdict{} // the group has judged the tracks
	case a.HolderOnly && (!a.Standby || vip.By != configs.ByBGP): // a kernel route cannot say that it is worse
		return verdict{leaves: true, why: notHolding}
	case v.Barred != "":
		return verdict{leaves: true, why: v.Barred}
	case a.NeedsMajority && v.Minority:
		return verdict{leaves: true, why: "the group has no majority here"}
	case a.HolderOnly:
		return verdict{standby: true, why: notHolding}
	}
	return verdict{}
}

const notHolding = "this node does not hold"

// An account is what became of one virtual address so far.
type account struct {
	announced bool
	leaving   bool      // routers have been asked to prefer other paths
	standby   bool      // the path is longer than the holder's
	since     time.Time // of leaving
	why       string    // why it is not announced, or leaves
	unableAt  time.Time // when it was last unable; zero: never while announced
}

// step is what becomes of the account at now. next is when to look again at the latest; zero: nothing is pending.
func (c account) step(now time.Time, v verdict, grace time.Duration) (out account, next time.Time) {
	c.why = v.why
	switch {
	case v.unable:
		if c.announced {
			c.unableAt = now
		}
		c.announced, c.leaving, c.standby = false, false, false
	case v.leaves && !c.announced:
	case v.leaves && !c.leaving:
		c.leaving, c.since = true, now
		next = now.Add(grace)
		if grace == 0 {
			c.announced, c.leaving = false, false
		}
	case v.leaves:
		if next = c.since.Add(grace); !now.Before(next) {
			c.announced, c.leaving, next = false, false, time.Time{}
		}
	case c.announced:
		c.leaving, c.standby = false, v.standby
	case !c.unableAt.IsZero() && now.Sub(c.unableAt) < steadyFor:
		c.why, next = "it is served again, for less than a second", c.unableAt.Add(steadyFor)
	default:
		c.announced, c.standby, c.unableAt = true, v.standby, time.Time{}
	}
	return c, next
}
