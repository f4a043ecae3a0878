package doctor

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"strings"
	"time"
)

// A Document is one file of a bundle.
type Document struct {
	Name string
	Text string
}

// bundled are the files of a host that help to understand its network. None has secrets.
var bundled = []string{
	"proc/version", "proc/uptime", "proc/loadavg", "proc/meminfo", "proc/self/status", "proc/self/limits",
	"etc/os-release",
	"proc/net/tcp", "proc/net/tcp6", "proc/net/udp", "proc/net/udp6", "proc/net/route", "proc/net/ipv6_route",
	"proc/net/arp",
	"proc/net/dev", "proc/net/snmp", "proc/net/netstat", "proc/net/softnet_stat", "proc/net/ip_vs",
	"proc/net/ip_tables_names",
	"proc/sys/net/ipv4/ip_forward", "proc/sys/net/ipv4/conf/all/arp_ignore", "proc/sys/net/ipv4/conf/all/arp_announce",
	"proc/sys/net/ipv4/conf/all/rp_filter", "proc/sys/net/ipv6/conf/all/forwarding",
	"proc/sys/net/ipv6/conf/all/disable_ipv6",
	"proc/sys/net/netfilter/nf_conntrack_max", "proc/sys/net/netfilter/nf_conntrack_count",
}

// Facts describe the host, for a bundle.
func Facts(h HostView) []Document {
	var b strings.Builder
	ifs, err := h.Interfaces()
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, i := range ifs {
		fmt.Fprintf(&b, "%s %s mtu %d up %t carrier %t mac %s %s\n", i.Name, i.Kind, i.MTU, i.Up, i.Carrier, i.MAC,
			prefixes(i.Addrs))
	}
	docs := []Document{{"host/interfaces.txt", b.String()}}
	b.Reset()
	chains, err := h.Chains()
	if err != nil {
		fmt.Fprintln(&b, err)
	}
	for _, c := range chains {
		fmt.Fprintf(&b, "%s %s %s hook %s, %d rules, drops %t\n", c.Family, c.Table, c.Chain, c.Hook, c.Rules, c.Drops)
	}
	docs = append(docs, Document{"host/chains.txt", b.String()})
	for _, name := range bundled {
		if data, err := fs.ReadFile(h.Files(), name); err == nil {
			docs = append(docs, Document{"host/" + name, string(data)})
		}
	}
	return docs
}

// WriteBundle writes documents as a tar.gz, with everything masked that looks like a secret.
func WriteBundle(w io.Writer, docs []Document, at time.Time) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, d := range docs {
		text := Mask(d.Text)
		err := t.WriteHeader(&tar.Header{Name: "appliance-doctor/" + d.Name, Mode: 0o600, Size: int64(len(text)),
			ModTime: at})
		if err == nil {
			_, err = io.WriteString(t, text)
		}
		if err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return z.Close()
}

// masks are the forms of secrets. What the first group keeps stays.
var masks = []*regexp.Regexp{
	regexp.MustCompile(`(appliance-[a-z]+-key-\d+:)\S+`),
	regexp.MustCompile(`(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]*`),
	regexp.MustCompile(`(\$2[abxy]\$\d\d\$)[./A-Za-z0-9]+`),                               // bcrypt
	regexp.MustCompile(`(://[^/\s:@]+:)[^/\s@]+`),                                         // a password in a URL
	regexp.MustCompile(`(?i)(authorization:?\s*(?:bearer|basic)\s+|\bbearer\s+)[^\s"']+`), // a header
	regexp.MustCompile(`(?i)((?:password|passwd|secret|token|api[-_]?key)"?\s*[:=]\s*"?)[^\s",}&]+`),
	regexp.MustCompile(`(?i)([?&](?:password|secret|token|key|sig|signature)=)[^&\s"]+`),
}

// Mask replaces what looks like a secret.
func Mask(text string) string {
	for _, m := range masks {
		text = m.ReplaceAllString(text, "${1}MASKED")
	}
	return text
}
