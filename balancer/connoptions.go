package balancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Defaults of the user-space data plane's dials. They are in force where a
// field is zero, and the configuration file has the same.
const (
	// DefaultConnectTimeout bounds one dial. The kernel repeats a lost SYN
	// after 1 s (RFC 6298, section 2.1); another backend is the better second try.
	DefaultConnectTimeout = time.Second
	// DefaultRetries is haproxy's, and tries a group of three as a whole.
	DefaultRetries = 3
	// DefaultFailTimeout is nginx's.
	DefaultFailTimeout = 10 * time.Second
)

// ConnLifetime is how long an open connection may go on after the reason to
// send it where it goes has ended: its backend left the configuration, the VIP
// moved, or its node left. The watches of Kubernetes' clients, which are the
// longest connections there are, end by themselves within it.
const ConnLifetime = time.Hour

// ConnOptions say how the connections of a load balancer are treated, beyond
// which backend they get. The zero value asks for nothing special.
type ConnOptions struct {
	// MaxConn bounds the open connections on each frontend of this node; further
	// clients wait in the kernel's queue. Zero means no limit.
	MaxConn int
	// Persistence sends a client address to the backend that it had less than
	// this long ago. Zero means off.
	Persistence time.Duration
	// ClientTimeout and ServerTimeout reset a connection on which no byte has
	// moved to or from that side for this long. Zero means never: a watch may
	// be silent for hours.
	ClientTimeout, ServerTimeout time.Duration
	// QueueTimeout bounds the wait for a backend below its MaxConn. Zero means
	// the load balancer's ConnectTimeout.
	QueueTimeout time.Duration
	// Retries is the number of dials after the first one failed. Zero means
	// DefaultRetries, a negative number none.
	Retries int
	// RequireTLS is the time in which a client must send a TLS ClientHello;
	// otherwise it never reaches a backend. Zero asks for no TLS.
	RequireTLS time.Duration
	// AcceptProxyFrom are the clients that must begin with a PROXY header,
	// which names the client they speak for. Empty means that nobody does.
	AcceptProxyFrom []netip.Prefix
	// SendProxy is the version of the PROXY header that backends get: v1, v2,
	// or empty for none.
	SendProxy string
	// Allow and Deny are client addresses, enforced by every data plane. Deny
	// wins; an empty Allow means everybody.
	Allow, Deny []netip.Prefix
	// KeepDown leaves the open connections of a backend that is marked down
	// alone; otherwise they are reset.
	KeepDown bool
	// Log is how connections that have ended are logged: text, json, or empty for not at all.
	Log string
	// LogBegin is how the beginnings of connections are logged: text, json, or empty for not at all.
	LogBegin string
	// Of LogEvery connections one is logged; zero means each. LogRate bounds the lines of the load balancer on this node
	// in a second, of beginnings and ends each; zero means no bound.
	LogEvery, LogRate int
	// EndBackup resets the open connections of backup backends when another
	// backend is marked up.
	EndBackup bool
}

// Admits reports whether client may connect.
func (o ConnOptions) Admits(client netip.Addr) bool {
	client = client.Unmap().WithZone("")
	has := func(p netip.Prefix) bool { return p.Contains(client) }
	return !slices.ContainsFunc(o.Deny, has) && (len(o.Allow) == 0 || slices.ContainsFunc(o.Allow, has))
}

// Unsupported lists the settings of lb that plane cannot honour because only
// user space can, by their keys in the configuration file.
func (lb LoadBalancer) Unsupported(plane PlaneName) []string {
	o := lb.ConnOptions
	has := func(f func(Backend) bool) bool { return slices.ContainsFunc(lb.Backends, f) }
	maxConn := has(func(b Backend) bool { return b.MaxConn > 0 })
	// IPVS has thresholds without a queue, which the operator must have asked for.
	threshold := plane == IPVS && lb.Plane == IPVS
	var keys []string
	for _, k := range []struct {
		key         string
		unsupported bool
	}{
		{"maxconn", o.MaxConn > 0},
		{"persistence", o.Persistence > 0 && plane != IPVS},
		{"timeouts.client", o.ClientTimeout > 0},
		{"timeouts.server", o.ServerTimeout > 0},
		{"timeouts.queue", o.QueueTimeout > 0 && maxConn},
		{"requireTLS", o.RequireTLS > 0},
		{"acceptProxy", len(o.AcceptProxyFrom) > 0},
		{"log", o.Log != ""},
		{"sendProxy", o.SendProxy != ""},
		{"backends.maxconn", maxConn && !threshold},
		{"backends.maxqueue", has(func(b Backend) bool { return b.MaxQueue > 0 })},
		{"backends.sendProxy", has(func(b Backend) bool { return b.SendProxy != "" && b.SendProxy != ProxyOff })},
		{"backends.slowstart", has(func(b Backend) bool { return b.SlowStart > 0 })},
	} {
		if k.unsupported && plane != UserSpace {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// NeedsUserSpace says which settings keep plane from serving lb. Nil means none.
func (lb LoadBalancer) NeedsUserSpace(plane PlaneName) error {
	if keys := lb.Unsupported(plane); len(keys) > 0 {
		return fmt.Errorf("load balancer %s needs user space: %s; set dataPlane to userspace or auto, or remove it",
			lb.Name, strings.Join(keys, ", "))
	}
	return nil
}
