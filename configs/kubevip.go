package configs

import "strings"

// retired are the keys of kube-vip 0.1 that mean nothing here, with what
// happens instead. They are accepted with a warning, because its files are
// accepted as they are.
var retired = map[string]string{
	"gratuitousarp":                        "is not needed any more: the holder always announces itself; remove the line",
	"vipcidr":                              "is not needed any more: a virtual address is bound as a host address; remove the line",
	"address":                              "has no effect: names are not looked up; write the address as vip",
	"enableloadbalancer":                   "is not needed any more: load balancing is always on; remove the line",
	"enableleaderelection":                 "has no effect: the peers elect among themselves, without Kubernetes; remove the line",
	"leaseduration":                        "has no effect: group.heartbeat is the time after which peers elect; remove the line",
	"renewdeadline":                        "has no effect: group.heartbeat is the time after which peers elect; remove the line",
	"retryperiod":                          "has no effect: group.heartbeat is the time after which peers elect; remove the line",
	"enablebgp":                            "has no effect: the virtual address is answered for on the link, not routed; remove the line",
	"bgpconfig":                            "has no effect: the virtual address is answered for on the link, not routed; remove the line",
	"bgppeerconfig":                        "has no effect: the virtual address is answered for on the link, not routed; remove the line",
	"enablepacket":                         "has no effect: no cloud's interface is called; remove the line",
	"packetapikey":                         "has no effect: no cloud's interface is called; remove the line, it is a secret",
	"packetproject":                        "has no effect: no cloud's interface is called; remove the line",
	"loadbalancers[].backends[].parsedurl": "has no effect: url says it; remove the line",
}

func retiredKey(prefix, name string) (string, bool) {
	why, ok := retired[strings.ToLower(prefix+name)]
	return why, ok
}

// renamedKey reports whether kube-vip wrote the key name as other: its
// dumped files call a backend's url by the name that it had in the program.
func renamedKey(name, other string) bool {
	return name == "url" && strings.EqualFold(other, "rawURL")
}
