package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// block finds what docs/install.md says to run, by the comment before it.
var block = regexp.MustCompile("(?s)<!-- run: ([a-z ]+) -->\n```sh\n(.*?)```")

// The commands of docs/install.md work, in the order of the page.
func TestInstallGuide(t *testing.T) {
	kernelHasOverlay(t)
	data, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := block.FindAllStringSubmatch(string(data), -1)
	script, ran := "cd /packages\n", 0
	for _, b := range blocks {
		switch b[1] {
		case "variables":
			b[2] = strings.NewReplacer("v0.1.0 ", "v1.2.3 ", "amd64 ", made.arch.name+" ").Replace(b[2])
		case "image", "install on the others": // TestContainerd, and integration
			continue
		}
		script += "echo '== " + b[1] + "'\n" + b[2]
		ran++
	}
	if ran != 5 {
		t.Fatalf("docs/install.md has %d blocks to run", ran)
	}
	out := scratch(t, dist(t), script+"appliance version\n! test -e /etc/systemd/system/appliance.service\n")
	for _, want := range []string{"linux_" + made.arch.name + ".tar.gz: OK", "would write /etc/appliance/config.yaml",
		"remove /usr/local/bin/appliance", "Setting up appliance (1.2.3-1)"} {
		if !strings.Contains(out, want) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
}
