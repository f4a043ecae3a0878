package convert

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"appliance/convert/syntax"
)

// A Format is a program whose configuration can be read.
type Format string

// The kinds. Detect finds out which one a file is of.
const (
	HAProxy    Format = "haproxy"
	Nginx      Format = "nginx"
	Keepalived Format = "keepalived"
	KubeVIP    Format = "kube-vip"
)

// Kinds lists them.
func Formats() []Format { return []Format{HAProxy, Nginx, Keepalived, KubeVIP} }

func kinds() string {
	var words []string
	for _, k := range Formats() {
		words = append(words, string(k))
	}
	return strings.Join(words, ", ")
}

// signs are lines that only one kind has.
var signs = []struct {
	kind Format
	line *regexp.Regexp
}{
	{Keepalived, regexp.MustCompile(`(?m)^[ \t]*(vrrp_instance|vrrp_script|vrrp_sync_group|virtual_server|virtual_server_group|global_defs)\b[^;]*$`)},
	{Nginx, regexp.MustCompile(`(?m)^[ \t]*(stream|upstream[ \t]+\S+|server|events)[ \t]*(\{|$)`)},
	{KubeVIP, regexp.MustCompile(`(?mi)^(vip|localPeer|remotePeers|loadBalancers|gratuitousARP|startAsLeader|singleNode)[ \t]*:`)},
	{HAProxy, regexp.MustCompile(`(?m)^[ \t]*(global|defaults|frontend|backend|listen)\b[^;{:]*(:[^;{]*)?$`)},
}

// Detect finds out which program data is for.
func Detect(name string, data []byte) (Format, error) {
	var found []Format
	for _, s := range signs {
		if s.line.Match(data) {
			found = append(found, s.kind)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return "", fmt.Errorf("%s: is none of %s as far as one can see; if it is, say which with --from", syntax.Printable(name), kinds())
	case slices.Contains(found, Keepalived) && slices.Contains(found, HAProxy) && len(found) == 2:
		return "", fmt.Errorf("%s: looks like keepalived and haproxy in one; put them into two files", syntax.Printable(name))
	}
	return "", fmt.Errorf("%s: looks like %s; say which with --from", syntax.Printable(name), fmt.Sprint(found))
}
