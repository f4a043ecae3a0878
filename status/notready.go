package status

// A NotReadyKind says what keeps a node from being ready.
type NotReadyKind string

// The kinds. Each says what Subject and Reason of a NotReady hold.
const (
	GroupNotReady NotReadyKind = "group"   // no subject; the state of the group
	VIPUnbound    NotReadyKind = "vip"     // the VIP; no reason
	NoCarrier     NotReadyKind = "carrier" // the interface; no reason
	// VIPTaken: the VIP; the MAC of another machine that answers for it, while the group is new.
	VIPTaken NotReadyKind = "taken"
	// VIPTakenHere: the VIP; the interface of this host on which another program has it, while the group is new.
	VIPTakenHere NotReadyKind = "takenHere"
	// InterfaceFault: the interface; what goes on after its name.
	InterfaceFault NotReadyKind = "interface"
	TrackFailed    NotReadyKind = "track"     // the track; its result
	NotServed      NotReadyKind = "notServed" // the load balancer; the error, empty while it is only starting
	NoBackend      NotReadyKind = "noBackend" // the load balancer; no reason
	NotProved      NotReadyKind = "notProved" // the load balancer; what trials have found
)

// A NotReady is one reason why a node would not serve the VIPs now. Its text form, in JSON too, is for people: a
// reason that was read back from text has no kind.
type NotReady struct {
	Kind    NotReadyKind `json:"kind"`
	Subject string       `json:"subject,omitempty"`
	Reason  string       `json:"reason,omitempty"`
}

// OfLoadBalancer reports whether the reason is about one load balancer.
func (n NotReady) OfLoadBalancer() bool {
	return n.Kind == NotServed || n.Kind == NoBackend || n.Kind == NotProved
}

// String is the reason for people.
func (n NotReady) String() string {
	switch n.Kind {
	case GroupNotReady:
		return "group: " + n.Reason
	case VIPUnbound:
		return "virtual address " + n.Subject + " is not bound yet"
	case NoCarrier:
		return n.Subject + " has no carrier"
	case VIPTaken:
		return "another machine, " + n.Reason + ", answers for " + n.Subject + ", and this new group leaves it alone"
	case VIPTakenHere:
		return "another program has " + n.Subject + " on " + n.Reason + " of this host, and this new group takes over when " +
			"it gives the address up"
	case InterfaceFault:
		return n.Subject + " " + n.Reason
	case TrackFailed:
		return "track " + n.Subject + ": " + n.Reason
	case NotServed:
		if n.Reason == "" {
			return "load balancer " + n.Subject + " is not served yet"
		}
		return "load balancer " + n.Subject + ": " + n.Reason
	case NoBackend:
		return "load balancer " + n.Subject + " has no healthy backend"
	case NotProved:
		return "load balancer " + n.Subject + " serves no clients here: " + n.Reason
	}
	return n.Reason
}

// NotReadyTexts returns the reasons for people.
func (s *Snapshot) NotReadyTexts() (texts []string) {
	for _, n := range s.NotReady {
		texts = append(texts, n.String())
	}
	return texts
}

// MarshalText implements encoding.TextMarshaler.
func (n NotReady) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *NotReady) UnmarshalText(text []byte) error {
	*n = NotReady{Reason: string(text)}
	return nil
}
