package endpoints

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Text writes the guide for people.
func (g Guide) Text(w io.Writer) error {
	var b strings.Builder
	last := ""
	for _, c := range g.Clients {
		if c.LoadBalancer != last {
			fmt.Fprintf(&b, "LOAD BALANCER %s\n", c.LoadBalancer)
			last = c.LoadBalancer
		}
		fmt.Fprintf(&b, "  %s\n    %s\n    # %s\n", c.Who, strings.Join(c.Addresses, "\n    "), c.Why)
	}
	if len(g.Names) > 0 {
		fmt.Fprintf(&b, "\nTHE SERVERS' CERTIFICATES have to be valid for (subject alternative names)\n  %s\n",
			strings.Join(g.Names, ", "))
	}
	if len(g.Hosts) > 0 {
		fmt.Fprintf(&b, "\nWHERE THE DNS MAY BE DOWN, in /etc/hosts of every node\n  %s\n", strings.Join(g.Hosts, "\n  "))
	}
	for _, s := range g.Settings {
		fmt.Fprintf(&b, "\nFOR %s\n  %s\n", s.For, strings.ReplaceAll(s.Text, "\n", "\n  "))
	}
	fmt.Fprintln(&b, "\nFIREWALL (no VRRP, no multicast), beside lo and established or related packets in each chain")
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  CHAIN\tFROM\tTO\tPROTOCOL\tPORTS\tWHY")
	for _, o := range g.Firewall {
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\t%s\n", o.Chain, o.From, o.To, o.Protocol, o.Ports, o.Why)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}
