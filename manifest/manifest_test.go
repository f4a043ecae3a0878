package manifest

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"appliance/configs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// options makes the Params of the flags or the file, as the command line does.
func options(t *testing.T, file string, flags map[string]string) Params {
	t.Helper()
	src := configs.Source{
		Flag:       func(name string) (string, bool) { v, ok := flags[name]; return v, ok },
		FileExists: func(string) bool { return true },
	}
	var data []byte
	if file != "" {
		data = configs.Sample()
	}
	cfg, err := configs.Parse(file, data, src)
	if err != nil {
		t.Fatal(err)
	}
	return New(cfg, "registry.example/appliance:v1", file, src.Args())
}

var byFlags = map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13"}

func TestGolden(t *testing.T) {
	const file = "/etc/appliance/config.yaml"
	low := options(t, "", map[string]string{
		"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13", "lb-port": "443", "backend-port": "6443",
		"data-dir": "/srv/appliance data", "socket": "/srv/run/a.sock", "group-key": "/etc/group.key",
	})
	tests := []struct {
		golden string
		make   func(Params) ([]byte, error)
		o      Params
	}{
		{"pod.yaml", Pod, options(t, file, nil)},
		{"pod-flags.yaml", Pod, options(t, "", byFlags)},
		{"pod-low-port.yaml", Pod, low},
		{"daemonset.yaml", DaemonSet, options(t, file, nil)},
		{"unit.service", Unit, options(t, file, nil)},
		{"unit-low-port.service", Unit, low},
	}
	for _, tt := range tests {
		t.Run(tt.golden, func(t *testing.T) {
			got, err := tt.make(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", tt.golden)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("differs from %s; if it should, run go test -update:\n%s", path, diff)
			}
		})
	}
}

// The unit that is shipped is the one that is printed.
func TestShippedUnit(t *testing.T) {
	want, err := Unit(options(t, "/etc/appliance/config.yaml", nil))
	if err != nil {
		t.Fatal(err)
	}
	const path = "../packaging/appliance.service"
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s is not what manifest prints; run go test -update", path)
	}
}

// Kubernetes reads what is printed, and nothing in it is superfluous.
func TestKubernetesReadsIt(t *testing.T) {
	o := options(t, "/etc/appliance/config.yaml", nil)
	var pod corev1.Pod
	var set appsv1.DaemonSet
	for _, m := range []struct {
		make func(Params) ([]byte, error)
		into any
	}{{Pod, &pod}, {DaemonSet, &set}} {
		text, err := m.make(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, m.into); err != nil {
			t.Fatal(err)
		}
		for _, noise := range []string{"creationTimestamp", "status:", "null", "{}"} {
			if bytes.Contains(text, []byte(noise)) {
				t.Errorf("%T has %s, which is superfluous", m.into, noise)
			}
		}
	}
	if diff := cmp.Diff(set.Spec.Selector.MatchLabels, set.Spec.Template.Labels); diff != "" {
		t.Error("the daemonset does not select its own pods:", diff)
	}
	names := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		if names[v.Name] {
			t.Errorf("two volumes are called %s", v.Name)
		}
		names[v.Name] = true
	}
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		if !names[m.Name] {
			t.Errorf("%s is mounted from no volume", m.MountPath)
		}
	}
}

// Least privilege (R14), checked in the types and not in the text.
func TestPrivileges(t *testing.T) {
	for _, o := range []Params{{Image: "i"}, {Image: "i", LowPort: true}, {Image: "i", Programs: true}} {
		text, err := Pod(o)
		if err != nil {
			t.Fatal(err)
		}
		var pod corev1.Pod
		if err := yaml.UnmarshalStrict(text, &pod); err != nil {
			t.Fatal(err)
		}
		want := []corev1.Capability{"NET_ADMIN", "NET_RAW"}
		if o.LowPort {
			want = append(want, "NET_BIND_SERVICE")
		}
		if o.Programs {
			want = append(want, "SETUID", "SETGID", "KILL")
		}
		c := pod.Spec.Containers[0].SecurityContext
		switch {
		case !slices.Equal(c.Capabilities.Add, want), !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}):
			t.Errorf("capabilities are %v", c.Capabilities)
		case *c.Privileged, *c.AllowPrivilegeEscalation, !*c.ReadOnlyRootFilesystem:
			t.Errorf("security context is %v", c)
		case *pod.Spec.AutomountServiceAccountToken, !pod.Spec.HostNetwork, pod.Spec.HostPID, pod.Spec.HostIPC:
			t.Errorf("pod is %v", pod.Spec)
		case pod.Spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
			t.Error("seccomp is not the runtime's default")
		}
		for _, m := range pod.Spec.Containers[0].VolumeMounts {
			if strings.HasPrefix(m.Name, "config") && !m.ReadOnly {
				t.Errorf("%s can be written", m.MountPath)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	tests := []struct {
		name string
		make func(Params) ([]byte, error)
		o    Params
		want string
	}{
		{"no image", Pod, Params{}, "no image is named; give the container image with --image"},
		{"relative path", Pod, Params{Image: "i", Files: []string{"config.yaml"}},
			"config.yaml is not an absolute path; begin it with /"},
		{"relative path in a unit", Unit, Params{Binary: "appliance"}, "appliance is not an absolute path"},
		{"the host's own directory", DaemonSet, Params{Image: "i", Socket: "/run/a.sock"},
			"/run is not for the appliance alone"},
		{"one node's id for all", DaemonSet, Params{Image: "i", Args: []string{"--id=a"}},
			"--id names one node, and a daemonset runs on all of them"},
		{"control character", Unit, Params{Args: []string{"--id=a\nExecStart=/bin/sh"}}, "has a control character"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.make(tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v\nwant     %s", err, tt.want)
			}
			if got != nil {
				t.Errorf("printed nevertheless:\n%s", got)
			}
		})
	}
}

// A configuration file that only a flag or the environment names is mounted as well.
func TestConfigNamedByAnArgument(t *testing.T) {
	cfg, err := configs.Parse("", nil, configs.Source{
		Flag:       func(name string) (string, bool) { v, ok := byFlags[name]; return v, ok },
		FileExists: func(string) bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	o := New(cfg, "i", "", []string{"--config=/srv/a/config.yaml", "--id=a"})
	if want := []string{"/srv/a/config.yaml", configs.DefaultKeyFile}; !slices.Equal(o.Files, want) {
		t.Errorf("files are %v, want %v", o.Files, want)
	}
	if len(o.Args) != 2 {
		t.Errorf("arguments are %v", o.Args)
	}
}

// The kubelet must not expand an argument as a variable of the container.
func TestArgsAreLiteral(t *testing.T) {
	text, err := Pod(Params{Image: "i", Args: []string{"--id=$(HOME)"}})
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(text, &pod); err != nil {
		t.Fatal(err)
	}
	if got := pod.Spec.Containers[0].Args[1]; got != "--id=$$(HOME)" {
		t.Errorf("the argument is %s, which the kubelet expands", got)
	}
}

// Kubernetes reads each argument as the text that it is, whatever else it could be in YAML of any version.
func TestArgsAreText(t *testing.T) {
	args := []string{
		"yes", "no", "on", "off", "y", "n", "null", "~", "", "true", "12", "012", "0x1f", "1_000", "1e3", "1:30",
		".5", ".inf", "2026-01-02", "=", "<<", "a: b", "a #b", "- a", "[a]", "{a}", "&a", "*a", "!a", "|", ">",
		"%a", "@a", "`a`", "'", `"`, " a ", "a  b", "käse", "\u2028", strings.Repeat("long words ", 50),
	}
	text, err := Pod(Params{Image: "i", Args: args})
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(text, &pod); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append([]string{"start"}, args...), pod.Spec.Containers[0].Args); diff != "" {
		t.Error(diff)
	}
}

// systemd's own parser finds no fault.
func TestSystemdReadsIt(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	o := options(t, "/etc/appliance/config.yaml", nil)
	o.Binary = "/bin/true" // the program has to exist
	text, err := Unit(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "appliance.service")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestQuote(t *testing.T) {
	for word, want := range map[string]string{
		"--vip=192.0.2.10": "--vip=192.0.2.10",
		"":                 `""`,
		"a b":              `"a b"`,
		"50%":              "50%%",
		"$HOME":            "$$HOME",
		`a"b\c`:            `"a\"b\\c"`,
		"a;b":              `"a;b"`,
	} {
		if got := quote(word); got != want {
			t.Errorf("quote(%q) is %s, want %s", word, got, want)
		}
	}
}
