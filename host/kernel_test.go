package host

import "testing"

func TestOlderKernel(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-18-amd64": false, "6.18.44": false, "10.0": false, "6.0.9": true, "5.18.0-rc1": true,
		"4.18.0-553.el8.x86_64": true, "strange": true,
	} {
		if got := older(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
