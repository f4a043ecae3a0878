package convert

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"appliance/convert/syntax"
)

// A Format is the configuration format of a program that can be read.
type Format string

// The formats. Detect finds out which one a file has.
const (
	HAProxy    Format = "haproxy"
	Nginx      Format = "nginx"
	Keepalived Format = "keepalived"
	KubeVIP    Format = "kube-vip"
)

// Formats lists all formats.
func Formats() []Format { return []Format{HAProxy, Nginx, Keepalived, KubeVIP} }

// formatNames is all formats for people.
func formatNames() string {
	var words []string
	for _, f := range Formats() {
		words = append(words, string(f))
	}
	return strings.Join(words, ", ")
}

// signs are lines that only one format has.
var signs = []struct {
	format Format
	line   *regexp.Regexp
}{
	{Keepalived, regexp.MustCompile(`(?m)^[ \t]*(vrrp_instance|vrrp_script|vrrp_sync_group|virtual_server|` +
		`virtual_server_group|global_defs|real_server)\b[^;]*$`)},
	{Nginx, regexp.MustCompile(`(?m)^[ \t]*(stream|upstream[ \t]+\S+|server|events)[ \t]*(\{|$)`)},
	{KubeVIP, regexp.MustCompile(`(?mi)^(vip|localPeer|remotePeers|loadBalancers|gratuitousARP|startAsLeader|` +
		`singleNode)[ \t]*:`)},
	{HAProxy, regexp.MustCompile(`(?m)^[ \t]*(global|defaults|frontend|backend|listen)\b[^;{:]*(:[^;{]*)?$`)},
}

// include is a line by which nginx or keepalived reads another file.
var include = regexp.MustCompile(`(?m)^[ \t]*include\S*[ \t]+["']?([^;"'\s]+)`)

// includedBy is the format of the file of files that includes the one of that name, which does not say by itself what it
// is; empty if there is none.
func includedBy(name string, files []File) Format {
	for _, f := range files {
		for _, m := range include.FindAllSubmatch(f.Data, -1) {
			if ok, err := path.Match(path.Base(string(m[1])), path.Base(name)); !ok || err != nil || f.Name == name {
				continue
			}
			format := f.Format
			if format == "" {
				format, _ = Detect(f.Name, f.Data)
			}
			if format == Nginx || format == Keepalived {
				return format
			}
		}
	}
	return ""
}

// manifest is a line of each manifest of Kubernetes.
var manifest = regexp.MustCompile(`(?m)^kind:[ \t]*[A-Z]`)

// Detect finds out the format of data, the contents of the file of that name.
func Detect(name string, data []byte) (Format, error) {
	name = syntax.Printable(name)
	data = bytes.ReplaceAll(bytes.TrimPrefix(data, []byte("\ufeff")), []byte("\r\n"), []byte("\n"))
	var found []Format
	for _, s := range signs {
		if s.line.Match(data) {
			found = append(found, s.format)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && manifest.Match(data):
		return "", fmt.Errorf("%s: is a manifest of Kubernetes, and only the configuration of a program is read, "+
			"of kube-vip that of 0.1: put what the manifest has of it into a file, or write vips and peers; "+
			"if it is a configuration, say which with --from", name)
	case len(found) == 0:
		return "", fmt.Errorf("%s: is none of %s as far as one can see; if it is, say which with --from",
			name, formatNames())
	case slices.Contains(found, Keepalived) && slices.Contains(found, HAProxy) && len(found) == 2:
		return "", fmt.Errorf("%s: looks like keepalived and haproxy in one; put them into two files", name)
	}
	return "", fmt.Errorf("%s: looks like %s; say which with --from", name, fmt.Sprint(found))
}
