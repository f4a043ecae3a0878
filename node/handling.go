package node

import (
	"runtime"

	"appliance/balancer"
	"appliance/configs"
)

// handling turns the config's wishes for connections into the balancer's.
func handling(c configs.LoadBalancer) balancer.Handling {
	h := c.Handling
	retries := h.Retries
	if retries == 0 {
		retries = -1 // none: the balancer's zero is its default
	}
	return balancer.Handling{
		MaxConn:         h.MaxConn,
		Persistence:     h.Persistence,
		ClientTimeout:   h.ClientTimeout,
		ServerTimeout:   h.ServerTimeout,
		QueueTimeout:    h.QueueTimeout,
		Retries:         retries,
		RequireTLS:      h.RequireTLS,
		AcceptProxyFrom: h.AcceptProxyFrom,
		SendProxy:       h.SendProxy,
		Allow:           h.Allow,
		Deny:            h.Deny,
		KeepDown:        c.KeepDown,
		EndBackup:       c.EndBackup,
	}
}

// maxLoops bounds the loops of user space: one fills a core with more traffic
// than most networks have.
const maxLoops = 8

// loops is how many threads user space moves connections with. Go's scheduler
// gets as many places more: the group's timers must not wait for a loop that
// waits for clients, and no place has to change hands whenever one does.
func loops() int {
	cores := runtime.GOMAXPROCS(0)
	n := min(cores, maxLoops)
	runtime.GOMAXPROCS(cores + n)
	return n
}

// light is a node whose connections are the kernel's, or somebody else's, work.
func (n *node) light() bool {
	if n.witness() {
		return true
	}
	for _, lb := range loadBalancers(n.cfg) {
		if lb.Plane == balancer.UserSpace {
			return false
		}
	}
	return n.nftables
}
