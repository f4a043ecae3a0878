package convert_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"appliance/convert"
)

// given are addresses of flags, so that a file without peers gets further.
var given = convert.Addresses{
	VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
	Peers: []netip.Addr{
		netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::12"), netip.MustParseAddr("192.0.2.13"),
	},
}

// holds checks what must be true whatever a file says: the result is an error, or text that our loader takes.
func holds(t *testing.T, files ...convert.File) {
	for _, o := range []convert.Addresses{{}, given} {
		res, err := convert.Convert(files, o)
		if err != nil {
			if s := err.Error(); s == "" || strings.ContainsAny(s, "\x00\x1b\r") {
				t.Errorf("error %q", s)
			}
			if res.YAML != nil {
				t.Errorf("an error and text: %s", res.YAML)
			}
			continue
		}
		if res.Decide+res.Moot > 0 && !bytes.Contains(res.YAML, []byte("\n# ")) {
			t.Errorf("%d and %d statements were left, but there is no comment:\n%s", res.Decide, res.Moot, res.YAML)
		}
		if _, err := load(res.YAML); err != nil {
			t.Errorf("%v\n%s", err, res.YAML)
		}
	}
}

// seeds adds the samples with one of the names.
func seeds(f *testing.F, names ...string) {
	f.Helper()
	for _, files := range samples(f) {
		for _, file := range files {
			for _, name := range names {
				if file.Name == name {
					f.Add(file.Data)
				}
			}
		}
	}
}

func FuzzHAProxy(f *testing.F) {
	seeds(f, "haproxy.cfg")
	f.Fuzz(func(t *testing.T, data []byte) {
		holds(t, convert.File{Name: "f", Format: convert.HAProxy, Data: data})
	})
}

func FuzzNginx(f *testing.F) {
	seeds(f, "nginx.conf", "stream.conf")
	f.Fuzz(func(t *testing.T, data []byte) {
		holds(t, convert.File{Name: "f", Format: convert.Nginx, Data: data})
	})
}

func FuzzKeepalived(f *testing.F) {
	seeds(f, "keepalived.conf")
	f.Fuzz(func(t *testing.T, data []byte) {
		holds(t, convert.File{Name: "f", Format: convert.Keepalived, Data: data})
	})
}

func FuzzKubeVIP(f *testing.F) {
	seeds(f, "config.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		holds(t, convert.File{Name: "f", Format: convert.KubeVIP, Data: data})
	})
}

// FuzzTogether reads two files of one machine, each in the format that is detected.
func FuzzTogether(f *testing.F) {
	for _, files := range samples(f) {
		if len(files) == 2 {
			f.Add(files[0].Data, files[1].Data)
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		holds(t, convert.File{Name: "a", Data: a}, convert.File{Name: "b", Data: b})
	})
}
