package balancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Handling is how the connections of a load balancer are treated, beyond which
// backend they get. Its zero value asks for nothing special.
type Handling struct {
	// MaxConn bounds the open connections on this node; more clients wait in
	// the kernel's queue. Zero means no limit.
	MaxConn int
	// Persistence brings a client address back to the backend that it had
	// less than this long ago.
	Persistence time.Duration
	// ClientTimeout and ServerTimeout end a connection on which nothing has
	// moved to or from that side for so long. Zero means never: a watch may
	// be silent for hours.
	ClientTimeout, ServerTimeout time.Duration
	// QueueTimeout bounds the wait for a backend that has room; zero means
	// the time of one dial.
	QueueTimeout time.Duration
	// Retries is how many further dials follow the first that failed; zero
	// means 3, a negative number none.
	Retries int
	// RequireTLS is the time in which a client must have begun a TLS
	// handshake, or it never reaches a backend. Zero asks for no TLS.
	RequireTLS time.Duration
	// AcceptProxyFrom are the clients that must begin with a PROXY header,
	// which says whom they speak for.
	AcceptProxyFrom []netip.Prefix
	// SendProxy is the version of the PROXY header that backends get: v1, v2,
	// or empty for none.
	SendProxy string
	// Allow and Deny are client addresses. Deny wins; an empty Allow means
	// everybody. Every data plane keeps to them.
	Allow, Deny []netip.Prefix
	// KeepDown leaves the connections of a backend that is marked down alone;
	// otherwise they are reset.
	KeepDown bool
	// EndBackup resets the connections of backup backends when another one
	// is marked up.
	EndBackup bool
}

// Admits reports whether client may connect.
func (h Handling) Admits(client netip.Addr) bool {
	client = client.Unmap().WithZone("")
	has := func(p netip.Prefix) bool { return p.Contains(client) }
	return !slices.ContainsFunc(h.Deny, has) && (len(h.Allow) == 0 || slices.ContainsFunc(h.Allow, has))
}

// NeedsUserSpace says what of lb only the user-space data plane can do, but
// for the keys in able, which the asking plane can do too. Nil means nothing.
func (lb LoadBalancer) NeedsUserSpace(able ...string) error {
	h := lb.Handling
	var needs []string
	need := func(key string, wanted bool) {
		if wanted && !slices.Contains(needs, key) && !slices.Contains(able, key) {
			needs = append(needs, key)
		}
	}
	need("maxconn", h.MaxConn > 0)
	need("persistence", h.Persistence > 0)
	need("timeouts.client", h.ClientTimeout > 0)
	need("timeouts.server", h.ServerTimeout > 0)
	need("requireTLS", h.RequireTLS > 0)
	need("acceptProxy", len(h.AcceptProxyFrom) > 0)
	need("sendProxy", h.SendProxy != "")
	for _, b := range lb.Backends {
		// IPVS has thresholds, but no queue before them: that has to be wanted.
		need("backends.maxconn", b.MaxConn > 0 && lb.Plane != IPVS)
		need("backends.maxqueue", b.MaxQueue > 0 && lb.Plane == IPVS)
		need("backends.slowstart", b.SlowStart > 0)
	}
	if len(needs) == 0 {
		return nil
	}
	return fmt.Errorf("load balancer %s needs user space: %s; set dataPlane to userspace or auto, or remove it", lb.Name, strings.Join(needs, ", "))
}
