package cli

import "testing"

func TestFullImageName(t *testing.T) {
	for name, want := range map[string]string{
		"appliance:v1":                      "docker.io/library/appliance:v1",
		"appliance":                         "docker.io/library/appliance:latest",
		"acme/appliance:v1":                 "docker.io/acme/appliance:v1",
		"registry.example.org/appliance:v1": "registry.example.org/appliance:v1",
		"localhost/appliance":               "localhost/appliance:latest",
		"registry.example.org:5000/a":       "registry.example.org:5000/a:latest",
	} {
		if got := fullImageName(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
