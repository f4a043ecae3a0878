package configs

import (
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// spelledOut is the reference file with its alternatives uncommented.
func spelledOut() []byte {
	return regexp.MustCompile(`(?m)^( *)#(\S)`).ReplaceAll(Sample(), []byte("$1$2"))
}

// The reference file has every key, and no unknown one.
func TestReferenceIsComplete(t *testing.T) {
	rep := &report{}
	s, ok := parseFile("reference.yaml", spelledOut(), rep)
	if err := rep.err(); err != nil || !ok {
		t.Fatal(err)
	}
	for _, set := range settings {
		name, own := strings.CutPrefix(set.Key, ownCheckPrefix)
		if _, usual := setting("loadBalancers[].check." + name); set.Key == "" || own && usual {
			continue // it refers to the load balancer's check
		}
		found := false
		for key := range s.values {
			found = found || pattern(key) == set.Key
		}
		if !found {
			t.Errorf("%s is a setting, but the reference file lacks it", set.Key)
		}
	}
	for key, c := range s.values {
		if set, _ := setting(key); set.Default != "" && c.value != set.Default {
			t.Errorf("%s is %s in the reference file, but its default is %s", key, c.value, set.Default)
		}
	}
}

// The reference file names every flag and its environment variable.
func TestReferenceNamesFlags(t *testing.T) {
	text := strings.Join(strings.Fields(strings.ReplaceAll(string(Sample()), "#", " ")), " ")
	for _, set := range settings {
		if set.Flag == "" || set.Key == "" {
			continue
		}
		if !strings.Contains(text, "--"+set.Flag+", "+set.Env()+")") {
			t.Errorf("the reference file does not name --%s, %s", set.Flag, set.Env())
		}
	}
}

// Kubernetes' YAML reader understands the file too.
func TestReferenceIsPlainYAML(t *testing.T) {
	var v map[string]any
	if err := yaml.UnmarshalStrict(Sample(), &v); err != nil {
		t.Fatal(err)
	}
	for _, name := range children("") {
		if _, ok := v[name]; !ok && strings.Contains(string(Sample()), "\n"+name+":") {
			t.Errorf("%s is lost", name)
		}
	}
}

func TestSettingsAreWhole(t *testing.T) {
	flags, keys := map[string]bool{}, map[string]bool{}
	for _, s := range Settings() {
		if s.Usage == "" || s.Why == "" || s.Type == "" {
			t.Errorf("%s%s lacks a type, what it does, or why its default is what it is", s.Key, s.Flag)
		}
		if s.Flag != "" && flags[s.Flag] || s.Key != "" && keys[s.Key] {
			t.Errorf("%s%s is in the list twice", s.Key, s.Flag)
		}
		flags[s.Flag], keys[s.Key] = true, true
	}
	for flag, env := range map[string]string{"vip": "APPLIANCE_VIP", "group-key": "APPLIANCE_GROUP_KEY"} {
		for _, s := range Settings() {
			if s.Flag == flag && s.Env() != env {
				t.Errorf("the variable of --%s is %s, want %s", flag, s.Env(), env)
			}
		}
	}
}
