package ipvs

import (
	"net/netip"
	"slices"

	"github.com/cloudflare/ipvs"
)

// Totals is what passed since the service or backend was made.
type Totals struct {
	Connections           uint64
	PacketsIn, PacketsOut uint64
	BytesIn, BytesOut     uint64
}

// ServiceStats is what the kernel has counted for one frontend.
type ServiceStats struct {
	Frontend  netip.AddrPort
	Scheduler string
	Totals
	Backends []BackendStats
}

// BackendStats is what the kernel has counted for one backend of a frontend.
type BackendStats struct {
	Addr   netip.AddrPort
	Weight int
	// Active connections are open; Inactive ones are being opened or closed. Persistent is the number of clients that
	// are bound to this backend.
	Active, Inactive, Persistent int
	Totals
}

// Stats reads the counters of our services, sorted by frontend and by backend.
func (p *VirtualServer) Stats() ([]ServiceStats, error) {
	k, err := p.dial()
	if err != nil {
		return nil, err
	}
	defer closeKernel(k)
	all, err := services(k)
	if err != nil {
		return nil, err
	}
	var stats []ServiceStats
	for _, s := range all {
		if s.Flags&ours == 0 || s.FWMark != 0 {
			continue
		}
		ds, err := destinations(k, s.Service)
		if err != nil {
			return nil, err
		}
		st := ServiceStats{
			Frontend:  netip.AddrPortFrom(s.Address, s.Port),
			Scheduler: s.Scheduler,
			Totals:    totals(s.Stats, s.Stats64),
		}
		for _, d := range ds {
			st.Backends = append(st.Backends, BackendStats{
				Addr:       destinationKey(d.Destination),
				Weight:     int(d.Weight),
				Active:     int(d.ActiveConnections),
				Inactive:   int(d.InactiveConnections),
				Persistent: int(d.PersistentConnections),
				Totals:     totals(d.Stats, d.Stats64),
			})
		}
		slices.SortFunc(st.Backends, func(a, b BackendStats) int { return a.Addr.Compare(b.Addr) })
		stats = append(stats, st)
	}
	slices.SortFunc(stats, func(a, b ServiceStats) int { return a.Frontend.Compare(b.Frontend) })
	return stats, nil
}

// totals prefers the 64-bit counters, which the kernel has since Linux 4.1.
func totals(s, s64 ipvs.Stats) Totals {
	if s64 != (ipvs.Stats{}) {
		s = s64
	}
	return Totals{
		Connections: s.Connections,
		PacketsIn:   s.IncomingPackets, PacketsOut: s.OutgoingPackets,
		BytesIn: s.IncomingBytes, BytesOut: s.OutgoingBytes,
	}
}
