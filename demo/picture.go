package demo

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"appliance/lab"
)

// picture is what there is to see at one moment.
type picture struct {
	vip    netip.AddrPort
	peers  []peerView
	tries  []lab.Try
	events []event
}

// peerView is one peer as the picture shows it.
type peerView struct {
	id       string
	addr     netip.Addr
	alive    bool
	holds    bool // answers for the address, as seen on the wire
	ready    bool
	plane    string
	requests int64 // answered by the server beside it
}

// event is a line of the story.
type event struct {
	at   time.Duration // since the curtain rose
	text string
}

func (e event) String() string { return fmt.Sprintf("%6.2f s  %s", e.at.Seconds(), e.text) }

// strip is how many of the last requests are drawn, and bucket how many of
// them are one sign.
const (
	strip  = 60
	bucket = 4
)

// Colours of a terminal (ECMA-48 SGR).
const (
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	normal = "\x1b[0m"
)

// draw is the picture as lines for a terminal.
func (p picture) draw() []string {
	lines := []string{
		fmt.Sprintf("%sone address, three machines: %s%s", bold, p.vip, normal),
		"",
	}
	for _, v := range p.peers {
		lines = append(lines, v.draw())
	}
	failed := 0
	for _, t := range p.tries {
		if t.Err != nil {
			failed++
		}
	}
	lines = append(lines, "",
		fmt.Sprintf("  client  %s", drawTries(p.tries)),
		fmt.Sprintf("          a TLS request each 5 ms: %d, failed %d", len(p.tries), failed),
		"")
	for _, e := range p.events {
		lines = append(lines, "  "+e.String())
	}
	return lines
}

func (v peerView) draw() string {
	colour, mark, state := dim, " ", "starting"
	switch {
	case !v.alive:
		colour, mark, state = red, "x", "dead"
	case v.holds:
		colour, mark, state = green, "*", "answers for the address"
	case v.ready:
		colour, state = normal, "ready"
	}
	plane := ""
	if v.plane != "" && v.alive {
		plane = "  data plane " + v.plane
	}
	return fmt.Sprintf("  %s%s %-3s %-12s %-24s%s  server answered %d%s%s",
		colour, mark, v.id, v.addr, state, normal, v.requests, plane, normal)
}

// drawTries shows the last requests, oldest first; a sign is red if one of its
// requests failed.
func drawTries(tries []lab.Try) string {
	var b strings.Builder
	// Signs begin at fixed places in the row of all tries, so that they do
	// not flicker while it moves.
	from := max(0, len(tries)/bucket-strip)
	for i := from; i < len(tries)/bucket; i++ {
		sign := green + "·"
		for _, t := range tries[i*bucket : (i+1)*bucket] {
			if t.Err != nil {
				sign = red + "x"
			}
		}
		b.WriteString(sign)
	}
	return b.String() + normal
}
