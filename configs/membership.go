package configs

import (
	"fmt"
	"net/netip"
	"time"
)

// Preempt is when a holder gives way to a peer of a larger priority.
type Preempt struct {
	On bool
	// After is how long that peer has to have been connected.
	After time.Duration
}

const keyJoin = "join"

// join reads the addresses of the group that this node joins.
func (b *builder) join() []netip.AddrPort {
	var list []netip.AddrPort
	for i := range b.lists[keyJoin] {
		key := fmt.Sprintf("%s[%d]", keyJoin, i)
		a, port, ok := b.endpoint(key, b.get(key).value)
		if !ok {
			continue
		}
		if port == 0 {
			port = b.cfg.Group.Port
		}
		at := netip.AddrPortFrom(a, port)
		b.show(key, at.String(), b.at(key))
		list = append(list, at)
	}
	return list
}

func (b *builder) preempt() Preempt {
	const key = "group.preempt"
	c := b.get(key)
	b.show(key, c.value, c.origin)
	switch c.value {
	case "off":
		return Preempt{}
	case "immediate":
		return Preempt{On: true}
	}
	d, err := time.ParseDuration(c.value)
	if err != nil || d < 0 || d > 24*time.Hour {
		b.bad(key, "%s is none of off, immediate, or a duration up to 24h such as 5m; write one of them", printable(c.value))
		return Preempt{}
	}
	return Preempt{On: true, After: d}
}

// relateJoin holds a node that joins against what only members of a list say.
func (b *builder) relateJoin() {
	c := b.cfg
	for _, other := range []struct {
		key string
		on  bool
	}{{"startAsLeader", c.StartAsLeader}, {keySingle, c.SingleNode}} {
		if other.on {
			b.bad(keyJoin, "enters a group that exists, and %s: true begins one; remove one of the two", other.key)
		}
	}
	for _, v := range c.VIPs {
		for i, at := range c.Join {
			if at.Addr() == v {
				b.bad(fmt.Sprintf("%s[%d]", keyJoin, i), "%s is a virtual address, and may lead here; write the address of a peer", v)
			}
		}
	}
}
