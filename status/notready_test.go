package status

import (
	"encoding/json"
	"testing"
)

// The text form is what `status -o json` and /readyz have always said.
func TestNotReadyText(t *testing.T) {
	for want, reason := range map[string]NotReady{
		"group: joining": {Kind: GroupNotReady, Reason: "joining"},
		"virtual address 192.0.2.10 is not bound yet": {Kind: VIPUnbound, Subject: "192.0.2.10"},
		"eth0 has no carrier":                         {Kind: NoCarrier, Subject: "eth0"},
		"eth0 is a port of br0":                       {Kind: InterfaceFault, Subject: "eth0", Reason: "is a port of br0"},
		"another machine, 02:00:00:00:00:0a, answers for 192.0.2.10, and this new group leaves it alone": {
			Kind: VIPTaken, Subject: "192.0.2.10", Reason: "02:00:00:00:00:0a",
		},
		"track uplink: exit code 1":                {Kind: TrackFailed, Subject: "uplink", Reason: "exit code 1"},
		"load balancer api is not served yet":      {Kind: NotServed, Subject: "api"},
		"load balancer api: no kernel support":     {Kind: NotServed, Subject: "api", Reason: "no kernel support"},
		"load balancer api has no healthy backend": {Kind: NoBackend, Subject: "api"},
		"from another version":                     {Reason: "from another version"},
	} {
		data, err := json.Marshal([]NotReady{reason})
		if text := `["` + want + `"]`; err != nil || string(data) != text {
			t.Errorf("%+v is %s, %v; want %s", reason, data, err, text)
		}
		var back []NotReady
		if err := json.Unmarshal(data, &back); err != nil || back[0].String() != want {
			t.Errorf("%s is read back as %q, %v", data, back, err)
		}
	}
}
