package configs

import (
	"slices"
	"strings"

	"appliance/balancer"
)

// A Type says how the value of a Setting is written.
type Type string

// The types of settings. A List is a YAML list in the file. As a flag it is repeated
// or joined by commas; in the environment it is joined by commas.
const (
	String   Type = "string"
	Bool     Type = "bool"
	Int      Type = "int"
	Port     Type = "port"
	Duration Type = "duration"
	Path     Type = "path"
	List     Type = "list"
	// Map is a mapping of names to values, or a list of "name: value".
	Map Type = "map"
)

// A Setting is one thing that the operator can decide. There is one list of them: the
// file's keys, the flags, the environment, the manifest's arguments and the test of
// the reference file all follow from it.
type Setting struct {
	// Key is the place in the file; [] stands for any element of a list. Empty
	// means that the file cannot set it.
	Key string
	// Flag is the name on the command line, without dashes. Empty means that only
	// the file can set it.
	Flag string
	// Type says how the value is written.
	Type Type
	// Default is in force where nothing is set. Empty means none.
	Default string
	// Choices are the only values allowed, if there are any.
	Choices []string
	// Usage says what it does, in one line of help.
	Usage string
	// Why says why the default is what it is.
	Why string
}

// Env is the name of the environment variable, or empty if there is no flag.
func (s Setting) Env() string {
	if s.Flag == "" {
		return ""
	}
	return "APPLIANCE_" + strings.ToUpper(strings.ReplaceAll(s.Flag, "-", "_"))
}

// DefaultKeyFile is where the group key is looked for when nothing else is set, and
// where the help tells people to write the output of `appliance keygen`.
const DefaultKeyFile = "/etc/appliance/group.key"

const (
	keyVIPs  = "vips"
	keyPeers = "peers"
	keyLBs   = "loadBalancers"
	// ownCheckPrefix begins the keys of a backend's own check, each of which is explained as one of check.
	ownCheckPrefix = "loadBalancers[].backends[].check."
	keySelf        = "localPeer.id"
	keySingle      = "singleNode"
)

// Values that settings choose from.
var (
	roles      = []string{string(RolePeer), string(RoleWitness)}
	ownRoles   = append(slices.Clone(roles), string(RoleWorker))
	dataPlanes = words(balancer.Auto, balancer.Direct, balancer.IPVS, balancer.NFTables, balancer.UserSpace)
	markedDown = []string{balancer.EndSessions, balancer.KeepSessions}
	schedulers = append(words(balancer.RoundRobin, balancer.WeightedRoundRobin, balancer.LeastConn,
		balancer.WeightedLeastConn, balancer.SourceHash, balancer.Random, balancer.First), kernelSchedulers...)
	logLevels  = []string{"debug", "info", "warn", "error"}
	logFormats = []string{"text", "json"}
)

// facilities are those of syslog that programs other than the system's own use (RFC 5424, section 6.2.1).
var facilities = []string{
	"user", "daemon", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

// words are values of another type as strings.
func words[T ~string](values ...T) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = string(v)
	}
	return list
}

// Settings is the list of everything that can be set, in the order of the reference
// file. Flags win over environment, environment over file, file over default.
func Settings() []Setting { return slices.Clone(settings) }

var settings = slices.Concat([]Setting{
	{Flag: "config", Type: Path,
		Usage: "the configuration file; `appliance config sample` prints one",
		Why:   "none: a VIP and the peers on the command line are enough"},

	{Key: "vip", Type: String,
		Usage: "the virtual address, if there is only one (kube-vip's key)",
		Why:   "only the operator knows a free address of the network"},
	{Key: "vips[]", Flag: "vip", Type: List,
		Usage: "the virtual addresses, of either family",
		Why:   "only the operator knows a free address of the network"},
	{Key: "vips[].address", Type: String,
		Usage: "the virtual address, where more is said of it than the address",
		Why:   "only the operator knows a free address of the network"},
	{Key: "vips[].interface", Type: String,
		Usage: "the interface on which this one virtual address is answered for",
		Why:   "interface, or else the one whose subnet contains it"},
	{Key: "vips[].announce", Type: String, Choices: announceWays,
		Usage: "how this one virtual address is announced: arp, bgp or routes",
		Why:   "announce.by"},
}, pathSettings("vips[].", "those of announce.bgp"), []Setting{
	{Key: "interface", Flag: "interface", Type: String,
		Usage: "the interface on which the virtual addresses are answered for",
		Why: "empty: the one whose subnet contains the virtual address, " +
			"so the same file fits nodes whose interfaces have different names"},

	{Key: "peers[].id", Type: String,
		Usage: "the peer's name in the group",
		Why:   "its address; give a name where a replacement may get another address"},
	{Key: "peers[].address", Flag: "peers", Type: List,
		Usage: "the members of the group, this node included, " +
			"each as address, address:port, id=address, or address+address for a host of both families",
		Why: "none: nobody else can say who votes"},
	{Key: "peers[].addresses[]", Type: List,
		Usage: "further addresses of its host, such as the one of the other family; address+address is the short form",
		Why: "none: a host of one family has one. With the addresses of both, " +
			"both families get the peers as backends and the direct data plane"},
	{Key: "peers[].port", Type: Port,
		Usage: "the peer's port, if it is not group.port",
		Why:   "group.port: one port is one line in the firewall"},
	{Key: "peers[].role", Type: String, Default: string(RolePeer), Choices: roles,
		Usage: "peer, or witness: votes and never holds",
		Why:   "a peer that is listed can hold unless the operator says otherwise"},
	{Key: keySelf, Flag: "id", Type: String,
		Usage: "which of the peers this node is",
		Why:   "found by comparing the peers' addresses with the node's own, so one file fits all nodes"},
	{Key: "localPeer.address", Type: String,
		Usage: "this node's address (kube-vip's key)",
		Why:   "found in the list of peers"},
	{Key: "localPeer.port", Type: Port,
		Usage: "this node's peer port (kube-vip's key)",
		Why:   "group.port"},
	{Key: "remotePeers[].id", Type: String,
		Usage: "another peer's name (kube-vip's key)",
		Why:   "its address"},
	{Key: "remotePeers[].address", Type: String,
		Usage: "another peer's address (kube-vip's key)",
		Why:   "none: nobody else can say who votes"},
	{Key: "remotePeers[].port", Type: Port,
		Usage: "another peer's port (kube-vip's key)",
		Why:   "group.port"},
	{Key: "role", Flag: "role", Type: String, Default: string(RolePeer), Choices: ownRoles,
		Usage: "this node's own role: peer, witness, or worker: outside the group, balances for its own clients only",
		Why:   "for peer and witness the list of peers is the better place: everybody sees it"},
	{Key: keySingle, Flag: "single-node", Type: Bool, Default: "false",
		Usage: "a group of one, which holds at once and for ever",
		Why:   "high availability is what this is for"},
	{Key: "startAsLeader", Flag: "start-as-leader", Type: Bool, Default: "false",
		Usage: "found the group alone if it does not exist; the others join",
		Why:   "the listed peers found the group together, so that there cannot be two groups"},
	{Key: "takeover", Flag: "takeover", Type: Bool, Default: "false",
		Usage: "start beside a program that has a virtual IP on this host, and take over when it gives the address up",
		Why:   "an address that something else has here is a mistake, unless you say that it is to be replaced"},
	{Key: "join[]", Flag: "join", Type: List,
		Usage: "members of a group that this node joins, each as address or address:port; it learns the others from them",
		Why:   "none: the listed peers found the group, or find it"},
	{Key: "priority", Flag: "priority", Type: Int, Default: "100",
		Usage: "how much this node is preferred as holder, 0 to 255",
		Why:   "all nodes are equal; group.preempt says what a higher priority means"},
	{Key: "addPeersAsBackends", Type: Bool, Default: "false",
		Usage: "add the peers that can hold to the backends of the first load balancer, and of each that lists none",
		Why:   "a list of backends means what it says; without any load balancer the peers are taken anyway"},

	{Key: "group.port", Flag: "port", Type: Port, Default: "10000",
		Usage: "the port on which peers talk to each other, TCP and UDP",
		Why:   "kube-vip's; the only port to open between peers"},
	{Key: "group.keyFile", Flag: "group-key", Type: Path,
		Usage: "the key that makes a node a member; `appliance keygen` prints one",
		Why:   DefaultKeyFile + " if it exists, so that a node with a key needs no setting"},
	{Key: "group.oldKeyFile", Type: Path,
		Usage: "a second group key that is accepted while keyFile is replaced",
		Why:   "none: there is one key, except during a rotation"},
	{Key: "group.caFile", Type: Path,
		Usage: "your own CA, instead of the group key",
		Why:   "none: one key is easier to guard than three files per node"},
	{Key: "group.certFile", Type: Path,
		Usage: "this node's certificate from that CA",
		Why:   "none, as group.caFile"},
	{Key: "group.certKeyFile", Type: Path,
		Usage: "the key of that certificate",
		Why:   "none, as group.caFile"},
	{Key: "group.insecure", Flag: "insecure", Type: Bool, Default: "false",
		Usage: "let anybody who reaches the peer port vote",
		Why:   "a node that votes can take the virtual address"},
	{Key: "group.heartbeat", Type: Duration, Default: "150ms",
		Usage: "silence of the holder after which the others elect a new one",
		Why:   "a busy node is at times late by some 30 ms; a killed holder is noticed at once by its closed port"},

	{Key: "group.preempt", Type: String, Default: "off",
		Usage: "whether a holder gives way to a peer of higher priority: off, immediate, " +
			"or how long that peer must have been connected",
		Why: "off: a move without a fault is a move too many"},

	{Key: "dataPlane", Flag: "data-plane", Type: String, Default: "auto", Choices: dataPlanes,
		Usage: "what moves the packets",
		Why:   "the fastest one that kernel and network support is found by trying"},

	{Key: "loadBalancers[].name", Type: String,
		Usage: "the name in status, logs and metrics",
		Why:   "lb-<port>; kube-apiserver where no load balancer is listed"},
	{Key: "loadBalancers[].type", Type: String, Default: "tcp", Choices: []string{"tcp"},
		Usage: "tcp; kube-vip's http is read as tcp, which carries it",
		Why:   "TLS stays between client and server"},
	{Key: "loadBalancers[].port", Flag: "lb-port", Type: Port, Default: "6443",
		Usage: "the port that clients connect to",
		Why:   "the Kubernetes API's"},
	{Key: "loadBalancers[].bindToVip", Type: Bool, Default: "true",
		Usage: "listen on the virtual addresses only; false: on every address of the node",
		Why:   "the node's own addresses belong to its own servers"},
	{Key: "loadBalancers[].vips[]", Type: List,
		Usage: "the virtual addresses that it is served on, some of vips; off: none, only those of listen",
		Why:   "all: one address per service is the usual case, and the other addresses are for another family or network"},
	{Key: "loadBalancers[].listen[]", Flag: "listen", Type: List,
		Usage: "further addresses of this node to listen on, such as 127.0.0.1 and ::1",
		Why:   "none: clients use the virtual addresses"},
	{Key: "loadBalancers[].backendPort", Flag: "backend-port", Type: Port,
		Usage: "the port of backends that name none",
		Why:   "the load balancer's own port, which the direct data plane needs; 0 means the same"},
	{Key: "loadBalancers[].scheduler", Type: String, Default: "rr", Choices: schedulers,
		Usage: "how a backend is chosen for a new connection",
		Why:   "round robin is fair among equal servers and needs no state"},
	{Key: "loadBalancers[].dataPlane", Type: String, Choices: dataPlanes,
		Usage: "what moves the packets of this load balancer",
		Why:   "dataPlane above"},
}, connSettings("loadBalancers[]."), []Setting{
	{Key: "loadBalancers[].maxFails", Type: Int, Default: "3",
		Usage: "failed connections of clients within failTimeout that keep a backend from new ones for failTimeout; 0: off",
		Why:   "a check may get through where clients do not"},
	{Key: "loadBalancers[].failTimeout", Type: Duration,
		Default: formatDuration(balancer.DefaultFailTimeout),
		Usage:   "the time of maxFails",
		Why:     "nginx's"},
	{Key: "loadBalancers[].whenAllDown", Type: String, Default: "refuse", Choices: []string{"refuse", "try"},
		Usage: "refuse: reset new connections while all backends are down; try: spread them over all backends",
		Why:   "a client that is refused at once can try elsewhere"},
	{Key: "loadBalancers[].onMarkedDown", Type: String, Default: balancer.EndSessions, Choices: markedDown,
		Usage: "what happens to the open connections of a backend that is marked down",
		Why:   "clients of a dead server notice it at once"},
	{Key: "loadBalancers[].onMarkedUp", Type: String, Default: "keep",
		Choices: []string{"keep", "shutdown-backup-sessions"},
		Usage:   "what happens to the open connections of backups when another backend is marked up",
		Why:     "a connection that works is left alone"},
}, checkSettings("loadBalancers[].check."), []Setting{
	{Key: "loadBalancers[].backends[].name", Type: String,
		Usage: "the name in status, logs and metrics",
		Why:   "its address"},
	{Key: "loadBalancers[].backends[].address", Type: String,
		Usage: "the server's address or name, with or without :port; a name stands for one server for each of its addresses",
		Why:   "none: a load balancer without backends is a mistake"},
	{Key: "loadBalancers[].backends[].maxAddresses", Type: Int, Default: "0",
		Usage: "how many addresses of a name are servers, the lowest first; 0: all",
		Why:   "a name of several addresses usually stands for servers that are all there to serve"},
	{Key: "loadBalancers[].backends[].port", Type: Port,
		Usage: "the server's port",
		Why:   "backendPort; 0 means the same"},
	{Key: "loadBalancers[].backends[].url", Type: String,
		Usage: "scheme://address:port instead of address and port (kube-vip's key)",
		Why:   "none: address and port are enough"},
	{Key: "loadBalancers[].backends[].backup", Type: Bool, Default: "false",
		Usage: "gets connections only while no other backend can take any",
		Why:   "every server listed is there to serve"},
	{Key: "loadBalancers[].backends[].weight", Type: Int, Default: "1",
		Usage: "share of new connections relative to the others, 0 to 256; 0: none",
		Why:   "all servers are equal unless the operator says otherwise"},
	{Key: "loadBalancers[].backends[].maxconn", Type: Int, Default: "0",
		Usage: "open connections with it from each address of this node at which further clients queue; " +
			"0: no limit (user space; with dataPlane: ipvs a threshold without a queue)",
		Why: "few servers can be overrun"},
	{Key: "loadBalancers[].backends[].maxqueue", Type: Int, Default: "0",
		Usage: "clients that may queue for it; further ones are refused; 0: no limit (user space)",
		Why:   "timeouts.queue bounds the wait"},
	{Key: "loadBalancers[].backends[].slowstart", Type: Duration, Default: "0s",
		Usage: "time in which its share grows to its weight after it came up (user space)",
		Why:   "off: a healthy server can take its share"},
	{Key: "loadBalancers[].backends[].disabled", Type: Bool, Default: "false",
		Usage: "gets no connections until `appliance backends enable` lets it in",
		Why:   "every server listed is there to serve"},
	{Key: "loadBalancers[].backends[].sendProxy", Type: String, Choices: []string{"off", "v1", "v2"},
		Usage: "begin its connections with a PROXY header of this version, or with none (user space)",
		Why:   "sendProxy above"},
	{Key: "loadBalancers[].backends[].onMarkedDown", Type: String, Choices: markedDown,
		Usage: "what happens to its open connections when it is marked down",
		Why:   "onMarkedDown above"},
	{Key: "loadBalancers[].backends[].maxFails", Type: Int,
		Usage: "failed connections of clients within failTimeout that keep it from new ones for failTimeout; 0: off",
		Why:   "maxFails above"},
	{Key: "loadBalancers[].backends[].failTimeout", Type: Duration,
		Usage: "the time of its maxFails",
		Why:   "failTimeout above"},
}, ownCheckSettings(ownCheckPrefix), []Setting{
	{Key: "resolver.nameservers[]", Type: List,
		Usage: "the DNS servers that are asked for names, each as address or address:port",
		Why:   "those of /etc/resolv.conf, as for every program on the host"},
	{Key: "resolver.minTTL", Type: Duration, Default: "5s",
		Usage: "shortest time until a name is looked up again, however short its records live",
		Why:   "some zones say 0 and mean soon"},
	{Key: "resolver.maxTTL", Type: Duration, Default: "5m",
		Usage: "longest time until a name is looked up again, however long its records live",
		Why:   "records that live for a day would hold up a change for a day"},
}, announceSettings(), trackSettings(), []Setting{
	{Key: "dataDir", Flag: "data-dir", Type: Path, Default: "/var/lib/appliance",
		Usage: "where votes and the group's log are kept",
		Why:   "must survive a reboot: a node that forgets its vote could vote twice"},
	{Key: "linger", Flag: "linger", Type: Duration, Default: "30s",
		Usage: "how long after a stop the virtual addresses stay on lo, unanswered, for kernel data planes; 0s: not at all",
		Why: "an upgrade or restart within this time loses no open connection; " +
			"longer only makes the node's own clients wait"},
	{Key: "socket", Flag: "socket", Type: Path, Default: "/run/appliance/appliance.sock",
		Usage: "the root-only socket that the other commands talk to",
		Why:   "below /run, because it must be gone after a reboot"},
	{Key: "admin.listen[]", Flag: "admin-listen", Type: List, Default: "127.0.0.1:10001",
		Usage: "where page, metrics and probes are served: address:port, unix:/path, or off",
		Why:   "for users on the node itself; other addresses need a certificate, a password or a token"},
	{Key: "admin.path", Type: String, Default: "/",
		Usage: "the path of the page; haproxy's is /stats",
		Why:   "nothing else is there"},
	{Key: "admin.hosts[]", Type: List,
		Usage: "host names that browsers may use for this node",
		Why:   "its addresses and localhost only: a foreign name that points here is an attack (DNS rebinding)"},
	{Key: "admin.users[].name", Type: String,
		Usage: "a user who may see the page",
		Why:   "none: on the node itself everybody may"},
	{Key: "admin.users[].passwordHash", Type: String,
		Usage: "the bcrypt hash of the password; `appliance passwd` prints one",
		Why:   "none: a default password would be no secret"},
	{Key: "admin.tokenFile", Type: Path,
		Usage: "a file with a bearer token, for scrapers",
		Why:   "none, as admin.users"},
	{Key: "admin.certFile", Type: Path,
		Usage: "the certificate for TLS, read again when it changes",
		Why:   "none: on the node itself nobody listens in"},
	{Key: "admin.certKeyFile", Type: Path,
		Usage: "the key of that certificate",
		Why:   "none, as admin.certFile"},
	{Key: "admin.operate", Type: Bool, Default: "false",
		Usage: "let users give orders on the page: drain, disable, enable and weigh backends, drain, pin and choose nodes; " +
			"needs users, and TLS where it is not on loopback",
		Why: "false: what shows the state changes nothing unless somebody wants that"},
	{Key: "admin.hideVersion", Type: Bool, Default: "false",
		Usage: "leave the version out of what the admin listener shows",
		Why:   "people look for it during an upgrade"},

	{Key: "log.level", Flag: "log-level", Type: String, Default: "info", Choices: logLevels,
		Usage: "debug, info, warn or error",
		Why:   "info is one line per change of state, and quiet when nothing happens"},
	{Key: "log.format", Flag: "log-format", Type: String, Default: "text", Choices: logFormats,
		Usage: "text or json",
		Why:   "people are the first to read it"},
	{Key: "log.copy", Type: String, Default: "off",
		Usage: "where the log goes besides stderr: syslog, unix:/path, udp://address:port, tcp://address:port, " +
			"or the path of a file",
		Why: "off: systemd and kubelet keep what comes on stderr"},
	{Key: "log.connections", Type: String, Default: "stderr",
		Usage: "where load balancers with a log write: stderr, syslog, unix:/path, udp://address:port, " +
			"tcp://address:port, or the path of a file",
		Why: "it is there everywhere; a file is opened anew after it was moved away"},
	{Key: "log.facility", Type: String, Default: "local0", Choices: facilities,
		Usage: "the facility of all lines in a syslog",
		Why:   "what haproxy's files use"},
})

// settingAt is the place in settings of each key: a file may have 50,000 values.
var settingAt = func() map[string]int {
	at := make(map[string]int, len(settings))
	for i, s := range settings {
		at[s.Key] = i
	}
	return at
}()

// pattern turns the place of a value into the Key of its Setting.
func pattern(key string) string {
	isDigit := func(c rune) bool { return c >= '0' && c <= '9' }
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(key, "[")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		b.WriteByte('[')
		key = strings.TrimLeftFunc(rest, isDigit)
	}
}

// setting finds the Setting of a value by its place.
func setting(key string) (Setting, bool) {
	i, ok := settingAt[pattern(key)]
	if !ok || settings[i].Key == "" {
		return Setting{}, false
	}
	return settings[i], true
}

// children are the names that may follow prefix in the file, in the order of settings.
func children(prefix string) []string {
	var names []string
	for _, s := range settings {
		rest, ok := strings.CutPrefix(s.Key, prefix)
		if !ok || s.Key == "" {
			continue
		}
		name, _, _ := strings.Cut(rest, ".")
		name = strings.TrimSuffix(name, "[]")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// keyEndingIn is the one key of the file that ends in name, if there is only one.
func keyEndingIn(name string) (key string, ok bool) {
	for _, s := range settings {
		if !strings.HasSuffix(s.Key, "."+name) || strings.HasPrefix(s.Key, ownCheckPrefix) {
			continue
		}
		if ok {
			return "", false
		}
		key, ok = s.Key, true
	}
	return key, ok
}
