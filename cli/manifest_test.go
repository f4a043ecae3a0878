package cli

import (
	"os"
	"strings"
	"testing"
)

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

// An image has no libraries, so a program that needs some is not packed. That the program is, release tests.
func TestImageOfWhatNeedsLibraries(t *testing.T) {
	program, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Skip(err)
	}
	if err := static(program); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("/bin/sh: %v", err)
	}
}
