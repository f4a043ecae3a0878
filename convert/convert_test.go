package convert_test

import (
	stdcmp "cmp"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/configs"
	"appliance/convert"
)

var update = flag.Bool("update", false, "write the golden files anew")

// options are the addresses that some samples do not name.
var options = map[string]convert.Addresses{
	"haproxy-all": {VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")},
		Peers: []netip.Addr{
			netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
		}},
}

// samples are the directories of testdata, each with the files of one machine.
func samples(t testing.TB) map[string][]convert.File {
	t.Helper()
	names, err := filepath.Glob("testdata/*/*")
	if err != nil || len(names) == 0 {
		t.Fatal("no samples:", err)
	}
	list := map[string][]convert.File{}
	slices.SortStableFunc(names, func(a, b string) int { // the main file first
		return stdcmp.Or(strings.Compare(filepath.Dir(a), filepath.Dir(b)), len(a)-len(b), strings.Compare(a, b))
	})
	for _, name := range names {
		base := filepath.Base(name)
		if base == "want.yaml" || base == "want.err" || strings.Contains(name, "/fuzz/") {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sample := filepath.Base(filepath.Dir(name))
		list[sample] = append(list[sample], convert.File{Name: base, Data: data})
	}
	return list
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v; run go test -update ./convert", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), go test -update writes it anew:\n%s", name, diff)
	}
}

func load(data []byte) (*configs.Config, error) {
	return configs.Parse("converted.yaml", data, configs.Source{})
}

func TestSamples(t *testing.T) {
	for name, files := range samples(t) {
		t.Run(name, func(t *testing.T) {
			res, err := convert.Convert(files, options[name])
			dir := filepath.Join("testdata", name)
			if _, missing := os.Stat(filepath.Join(dir, "want.err")); missing == nil || err != nil && *update {
				if err == nil {
					t.Fatalf("no error, but %s", res.YAML)
				}
				golden(t, filepath.Join(dir, "want.err"), err.Error()+"\n")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join(dir, "want.yaml"), string(res.YAML))
			if _, err := load(res.YAML); err != nil {
				t.Errorf("does not load: %v", err)
			}
		})
	}
}

// TestKubeVIPMeansTheSame compares the result with what configs makes of kube-vip's file itself.
func TestKubeVIPMeansTheSame(t *testing.T) {
	names, err := filepath.Glob("../configs/testdata/kube-vip-*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatal("no files:", err)
	}
	key := func(string) bool { return true }
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := configs.Parse(name, data, configs.Source{FileExists: key})
		if err != nil {
			t.Fatal(err)
		}
		res, err := convert.Convert([]convert.File{{Name: name, Data: data}}, convert.Addresses{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := configs.Parse("converted.yaml", res.YAML, configs.Source{FileExists: key})
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, res.YAML)
		}
		// One file is for all nodes: it says neither which one this is nor which one is first.
		want.ID, want.StartAsLeader = "", false
		diff := cmp.Diff(want, got,
			cmpopts.IgnoreTypes(configs.Origin{}, []configs.Warning{}), cmpopts.IgnoreUnexported(configs.Config{}),
			cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
			cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
		if diff != "" {
			t.Errorf("%s (-itself +converted):\n%s\n%s", name, diff, res.YAML)
		}
	}
}
