package status

import "fmt"

// A Difference is something that two nodes of a group should have in common and have not.
type Difference struct {
	// Peer is the other node.
	Peer string `json:"peer"`
	// Key says what: frontends, vips, version, or a key of a load balancer such as "loadBalancers.api.backends".
	Key string `json:"key"`
	// Here and There are the values; empty if there is none.
	Here  string `json:"here"`
	There string `json:"there"`
}

// String is the difference for people.
func (d Difference) String() string {
	return fmt.Sprintf("%s: %s here, %s on %s", d.Key, orNothing(d.Here), orNothing(d.There), d.Peer)
}

func orNothing(value string) string {
	if value == "" {
		return "nothing"
	}
	return value
}
