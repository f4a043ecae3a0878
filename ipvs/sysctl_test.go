package ipvs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/ipvs"

	"appliance/sysctl"
)

// tree makes a directory with kernel parameters, as "key=value".
func tree(t *testing.T, values ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, v := range values {
		key, value, _ := strings.Cut(v, "=")
		file := filepath.Join(root, key)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func content(t *testing.T, root, key string) string {
	t.Helper()
	value, err := (&sysctl.Tree{Root: root}).Read(key)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestParameters(t *testing.T) {
	four := virtual{service: ipvs.Service{Family: ipvs.INET}}
	six := virtual{service: ipvs.Service{Family: ipvs.INET6, Flags: ipvs.ServicePersistent}}
	for _, tt := range []struct {
		name     string
		services []virtual
		want     []string
	}{
		{"IPv4", []virtual{four}, []string{"net/ipv4/vs/conntrack", "net/ipv4/ip_forward"}},
		{"IPv6 with persistence", []virtual{six}, []string{"net/ipv4/vs/conntrack",
			"net/ipv4/vs/expire_quiescent_template", "net/ipv6/conf/all/forwarding"}},
		{"both", []virtual{four, six}, []string{"net/ipv4/vs/conntrack", "net/ipv4/vs/expire_quiescent_template",
			"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}},
	} {
		var got []string
		for _, p := range parameters(tt.services) {
			got = append(got, p.Key)
			if p.Value != "1" || p.Why == "" {
				t.Errorf("%s: %+v", tt.name, p)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Parameters of IPVS need the kernel's option and the module at boot.
func TestParametersOfIPVS(t *testing.T) {
	s := sysctl.Tree{Root: tree(t, "net/ipv4/ip_forward=1")}
	err := s.Check(parameters([]virtual{{service: ipvs.Service{Family: ipvs.INET}}})...)
	if err == nil || !strings.Contains(err.Error(), "CONFIG_IP_VS_NFCT") {
		t.Errorf("got %v, want the kernel's option", err)
	}
	if m := expireNodest().Module; m != "ip_vs" {
		t.Errorf("module is %q", m)
	}
}
