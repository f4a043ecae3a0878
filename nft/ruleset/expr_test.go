package ruleset

import "testing"

// TestLinkName: two interfaces never have one chain.
func TestLinkName(t *testing.T) {
	of := make(map[string]string)
	for _, link := range []string{"eth0", "eth0.5", "eth0-5", "eth0_5", "eth0_2e5", "v.1", "v-1", "v_1", "ü", "a@b"} {
		name := LinkName(link)
		if other, taken := of[name]; taken {
			t.Errorf("%s and %s are both %s", other, link, name)
		}
		of[name] = link
		for _, c := range name {
			if c != '_' && (c < '0' || c > 'z') {
				t.Errorf("%s: nft does not take %s", link, name)
			}
		}
	}
	if LinkName("eth0") != "eth0" || LinkName("eth0.5") != "eth0_2e5" {
		t.Errorf("%s, %s", LinkName("eth0"), LinkName("eth0.5"))
	}
}
