package configs

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
)

//go:embed reference.yaml
var reference []byte

// Sample is the commented reference file, with every key and its default.
func Sample() []byte { return append([]byte(nil), reference...) }

// A Source is what was set beside the file. A nil function sets nothing.
type Source struct {
	// Flag returns a flag's value if it was given on the command line. The values
	// of a list are joined by commas.
	Flag func(name string) (string, bool)
	// Env is os.LookupEnv.
	Env func(name string) (string, bool)
	// FileExists looks for the group key in its default place; nil means os.Stat.
	FileExists func(path string) bool
}

// look finds what flag or environment say about a setting. An empty variable sets
// nothing, so that a manifest can leave one blank.
func (s Source) look(set Setting) (rawValue, bool) {
	if set.Flag == "" {
		return rawValue{}, false
	}
	if s.Flag != nil {
		if v, ok := s.Flag(set.Flag); ok {
			return rawValue{v, Origin{Flag: set.Flag}}, true
		}
	}
	if s.Env != nil {
		if v, ok := s.Env(set.Env()); ok && v != "" {
			return rawValue{v, Origin{Env: set.Env()}}, true
		}
	}
	return rawValue{}, false
}

// Args is everything that flags and environment set, as arguments: a manifest passes
// them to the process that it describes.
func (s Source) Args() []string {
	var args []string
	for _, set := range settings {
		if c, ok := s.look(set); ok {
			args = append(args, "--"+set.Flag+"="+c.value)
		}
	}
	return args
}

func (s Source) exists(path string) bool {
	if s.FileExists != nil {
		return s.FileExists(path)
	}
	_, err := os.Stat(path)
	return err == nil
}

// Load reads the file at path, lays environment and flags over it, and validates the
// whole. If path is empty, src may name the file, or there is none. The error holds
// every problem found, each with its place and what to write instead.
func Load(path string, src Source) (*Config, error) {
	if path == "" {
		c, _ := src.look(settings[0])
		path = c.value
	}
	if path == "" {
		return Parse("", nil, src)
	}
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data, src)
}

func read(path string) ([]byte, error) {
	// Without O_NONBLOCK, opening a pipe waits for somebody who writes to it, and not even SIGTERM ends that.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, Problem{Origin{File: path}, "", "is a socket or a device that is not there; give the path of a YAML file"}
	}
	if err != nil {
		reason := err
		if e, ok := err.(*fs.PathError); ok {
			reason = e.Err
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%s: %w; run this as root, or let the service's user read it: `appliance prepare`",
				path, reason)
		}
		return nil, fmt.Errorf("%s: %w; write one with `appliance config sample > %s`, or give --vip and --peers",
			path, reason, path)
	}
	defer f.Close()
	if err := readable(f); err != nil {
		return nil, Problem{Origin{File: path}, "", err.Error()}
	}
	_ = f.SetReadDeadline(time.Now().Add(pipeWithin)) // which a file has no use for
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, Problem{Origin{File: path}, "", fmt.Sprintf("is a pipe that does not end within %v; "+
			"give the path of a YAML file", pipeWithin)}
	}
	if err != nil {
		return nil, fmt.Errorf("%w; give the path of a YAML file", err)
	}
	if info, err := f.Stat(); err == nil && info.Mode()&fs.ModeNamedPipe != 0 && len(data) == 0 {
		return nil, Problem{Origin{File: path}, "", "is a pipe that gives nothing: nobody writes to it, or it has been read; " +
			"give the path of a YAML file"}
	}
	return data, nil
}

// pipeWithin bounds the wait for whoever writes to a pipe.
const pipeWithin = 10 * time.Second

// readable refuses what has no end or nothing to read.
func readable(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	kind := "a device"
	switch mode := info.Mode(); {
	case mode.IsRegular(), mode&fs.ModeNamedPipe != 0, f.Name() == os.DevNull: // which is as good as an empty file
		return nil
	case mode.IsDir():
		kind = "a directory"
	}
	return fmt.Errorf("is %s; give the path of a YAML file", kind)
}

// Parse is Load for the content of a file; name is the file in messages.
func Parse(name string, data []byte, src Source) (*Config, error) {
	rep := &report{}
	raw, ok := parseFile(name, data, rep)
	if !ok {
		return nil, rep.err()
	}
	b := &builder{
		report: rep, rawConfig: raw, file: name, src: src, cfg: &Config{}, unknownKeys: len(rep.problems) > 0,
	}
	overlay(raw, src, rep)
	b.build()
	if err := rep.err(); err != nil {
		return nil, err
	}
	b.cfg.Warnings = rep.warnings
	return b.cfg, nil
}

// overlay lays what flags and environment set over the file.
func overlay(raw *rawConfig, src Source, rep *report) {
	for _, set := range settings {
		c, ok := src.look(set)
		if !ok || set.Key == "" {
			continue
		}
		if set.Type == List && strings.Trim(c.value, ", ") == "" {
			rep.problem(c.origin, set.Key, "is empty; write addresses joined by commas, or leave it out")
			continue
		}
		switch {
		case set.Flag == "vip":
			raw.remove("vip")
			raw.remove(keyVIPs)
			raw.setList(keyVIPs, "", c)
		case set.Flag == keyJoin:
			raw.remove(keyJoin)
			raw.setList(keyJoin, "", c)
		case set.Flag == "admin-listen":
			raw.remove(keyListen)
			raw.setList(keyListen, "", c)
		case set.Flag == "peers":
			// The members of the group are one statement. Half of it from the file
			// and half from a flag would be a group that nobody wrote.
			raw.remove(keyPeers)
			raw.remove("localPeer")
			raw.remove("remotePeers")
			raw.setList(keyPeers, ".address", c)
		case strings.HasPrefix(set.Key, keyLBs+"[]") && raw.hasEmpty(keyLBs):
			rep.problem(c.origin, set.Key, "is for a load balancer, but %s says that there is none; remove one of the two",
				raw.originOf(keyLBs))
		case set.Flag == "listen" && raw.lists[keyLBs] == 0:
			raw.setList(keyLBs+"[0].listen", "", c)
		case strings.HasPrefix(set.Key, keyLBs+"[]"):
			if raw.lists[keyLBs] > 0 {
				key := strings.Replace(set.Key, "[]", "[0]", 1)
				rep.problem(c.origin, set.Key, "is for the load balancer that is made when none is listed, but %s lists some; "+
					"set %s there",
					raw.originOf(keyLBs), key)
				continue
			}
			raw.values[strings.Replace(set.Key, "[]", "[0]", 1)] = c
		default:
			raw.values[set.Key] = c
		}
	}
}

// setList stores the elements of a comma list.
func (r *rawConfig) setList(key, suffix string, c rawValue) {
	i := 0
	for v := range strings.SplitSeq(c.value, ",") {
		if v = strings.TrimSpace(v); v == "" {
			continue
		}
		r.values[key+"["+strconv.Itoa(i)+"]"+suffix] = rawValue{v, c.origin}
		i++
	}
	r.lists[key] = i
}

// build reads the raw configuration from top to bottom, then validates the parts
// against each other.
func (b *builder) build() {
	c := b.cfg
	if c.role = b.get("role"); !c.role.origin.IsDefault() {
		c.role.value = b.text("role")
	}
	c.VIPs = b.vips()
	c.Interface = b.interfaceName("interface")
	c.SingleNode = b.bool(keySingle)
	c.StartAsLeader = b.bool("startAsLeader")
	c.Takeover = b.bool("takeover")
	c.Group = b.group()
	before := len(b.problems)
	c.Join = b.join()
	c.Priority = b.int("priority", 0, 255)
	c.Group.Preempt = b.preempt()
	c.Peers = b.peers()
	b.peersUnsure = b.unknownKeys || len(b.problems) > before
	if id := b.get(keySelf); id.value != "" && c.peersKey == keyPeers {
		c.ID, c.idOrigin = b.name(keySelf, ""), id.origin
	} else {
		c.ID, c.idOrigin = id.value, id.origin // read with the rest of localPeer
	}
	c.Announce = b.announce()
	c.DataPlane = balancer.PlaneName(b.text("dataPlane"))
	c.LoadBalancers = b.loadBalancers(b.bool("addPeersAsBackends"))
	c.Resolver = b.resolver()
	c.Tracks = b.tracks()
	c.Hooks = b.hooks()
	c.DataDir = b.path("dataDir")
	c.Linger = b.duration("linger", 0, time.Hour)
	c.Socket = b.socketPath("socket")
	c.Log = LogSettings{Level: b.text("log.level"), Format: b.text("log.format"), Copy: b.logCopy(),
		Connections: b.logTarget("log.connections", "stderr"),
		Facility:    b.text("log.facility")}
	c.Admin = b.admin()
	b.validate()
}

func (b *builder) vips() []netip.Addr {
	var keys []string
	if c := b.values["vip"]; c.value != "" {
		keys = append(keys, "vip")
	}
	for key := range b.elements(keyVIPs) {
		keys = append(keys, key)
	}
	for i, key := range keys {
		if _, ok := b.values[key]; !ok { // {address: ..., interface: ...}, or empty, which is reported already
			keys[i] = key + ".address"
		}
	}
	keys = slices.DeleteFunc(keys, func(key string) bool {
		_, ok := b.values[key]
		vip := strings.TrimSuffix(key, ".address")
		if !ok && b.isSet(vip) {
			b.bad(vip, "has no address; write it beside the rest: {address: 192.0.2.10, …}")
		}
		return !ok
	})
	if len(keys) == 0 && b.cfg.Worker() {
		return nil // it may listen on addresses of its own; see validateWorker
	}
	if len(keys) == 0 {
		b.missing(keyVIPs, "is missing; write vips: [192.0.2.10] with a free address of the network, or give --vip")
		return nil
	}
	var vips []netip.Addr
	b.vipOrigins = map[netip.Addr]Origin{}
	b.cfg.vipInterfaces, b.cfg.vipAnnounces = map[netip.Addr]string{}, map[netip.Addr]vipAnnounce{}
	for _, key := range keys {
		v, ok := b.vip(key)
		if !ok {
			continue
		}
		b.show(key, v.String(), b.origin(key))
		if first, dup := b.vipOrigins[v]; dup {
			b.bad(key, "%s is there twice%s; remove one of the two", v, otherLine(first, b.origin(key)))
			continue
		}
		b.vipOrigins[v] = b.origin(key)
		vips = append(vips, v)
		vip, long := strings.CutSuffix(key, ".address")
		if !long {
			vip = ""
		}
		b.cfg.vipAnnounces[v] = b.vipAnnounce(vip)
		if long {
			if name := b.interfaceName(vip + ".interface"); name != "" {
				b.cfg.vipInterfaces[v] = name
			}
		}
	}
	return vips
}

// vip reads one virtual address. People copy it with the length of its subnet, which
// means nothing here: it is bound as a host address.
func (b *builder) vip(key string) (netip.Addr, bool) {
	value := b.values[key].value
	if address, bits, ok := strings.Cut(value, "/"); ok {
		p, err := netip.ParsePrefix(value)
		if err != nil {
			if _, bad := netip.ParseAddr(address); bad == nil {
				b.bad(key, "/%s is not the length of a prefix; write %s", printable(bits), address)
				return netip.Addr{}, false
			}
		} else if !p.IsSingleIP() {
			b.warn(b.origin(key), key, "/%s is ignored: a virtual address is bound as a host address; write %s",
				bits, p.Addr().Unmap())
		}
		value = address
	}
	a, ok := b.addr(key, value)
	if ok && a.IsLoopback() {
		b.bad(key, "%s is a loopback address, which no other machine can reach; "+
			"write a free address of the network", a)
		return a, false
	}
	return a, ok
}

func (b *builder) interfaceName(key string) string {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	if c.value != "" && (!isInterfaceName(c.value) || strings.Contains(c.value, ":")) {
		b.bad(key, "%s cannot be an interface's name; write one that `ip link` shows, "+
			"or nothing to have it found by the virtual address's subnet", printable(c.value))
	}
	return c.value
}

func (b *builder) group() GroupSettings {
	port := b.get("group.port")
	b.show("group.port", port.value, port.origin)
	g := GroupSettings{Port: b.port("group.port", false)}
	files := []string{"group.keyFile", "group.caFile", "group.certFile", "group.certKeyFile"}
	given := slices.ContainsFunc(files, func(key string) bool { return b.get(key).value != "" })
	if !given && b.get("group.insecure").value != "true" && b.src.exists(DefaultKeyFile) {
		g.KeyFile = DefaultKeyFile
		b.show("group.keyFile", DefaultKeyFile, Origin{})
	} else {
		g.KeyFile = b.path("group.keyFile")
	}
	g.OldKeyFile = b.path("group.oldKeyFile")
	g.CAFile = b.path("group.caFile")
	g.CertFile, g.CertKeyFile = b.path("group.certFile"), b.path("group.certKeyFile")
	g.Insecure = b.bool("group.insecure")
	// Below 50 ms the scheduler of a busy node looks like a death; above 10 s
	// nobody would call it high availability.
	g.Heartbeat = b.duration("group.heartbeat", 50*time.Millisecond, 10*time.Second)
	return g
}

const keyJoin = "join"

// join reads the addresses of the group that this node joins.
func (b *builder) join() []netip.AddrPort {
	var list []netip.AddrPort
	for key := range b.elements(keyJoin) {
		a, port, ok := b.endpoint(key, b.get(key).value)
		if !ok {
			continue
		}
		if port == 0 {
			port = b.cfg.Group.Port
		}
		at := netip.AddrPortFrom(a, port)
		b.show(key, at.String(), b.origin(key))
		list = append(list, at)
	}
	return list
}

// logCopy reads where the program's own log goes besides stderr.
func (b *builder) logCopy() string {
	to := b.logTarget("log.copy", "off")
	if to == "off" {
		return ""
	}
	return to
}

// logTarget reads where lines go; other is what may stand there besides syslog, sockets and files.
func (b *builder) logTarget(key, other string) string {
	to := b.text(key)
	scheme, rest, _ := strings.Cut(to, ":")
	switch {
	case to == other, to == "syslog":
	case scheme == "unix" && filepath.IsAbs(rest):
		b.checkSocket(key, rest)
	case scheme == "udp", scheme == "tcp":
		if _, err := netip.ParseAddrPort(strings.TrimPrefix(rest, "//")); err != nil || !strings.HasPrefix(rest, "//") {
			b.bad(key, "%s is no address and port; write %s://192.0.2.5:514", printable(to), scheme)
		}
	case !filepath.IsAbs(to) || strings.ContainsRune(to, 0):
		b.bad(key, "%s is none of %s, syslog, unix:/path, udp://address:port, tcp://address:port and the absolute "+
			"path of a file; write one of them", printable(to), other)
	}
	return to
}

// dnsPort is that of DNS servers (RFC 1035, section 4.2).
const dnsPort = 53

func (b *builder) resolver() ResolverSettings {
	const minKey, maxKey = "resolver.minTTL", "resolver.maxTTL"
	var r ResolverSettings
	for key := range b.elements("resolver.nameservers") {
		a, port, ok := b.endpoint(key, b.get(key).value)
		if !ok {
			continue
		}
		at := netip.AddrPortFrom(a, cmp.Or(port, dnsPort))
		b.show(key, at.String(), b.origin(key))
		r.Nameservers = append(r.Nameservers, at)
	}
	r.MinTTL, r.MaxTTL = b.duration(minKey, time.Second, day), b.duration(maxKey, time.Second, 31*day)
	if r.MinTTL > r.MaxTTL {
		b.bad(maxKey, "%s is shorter than resolver.minTTL, %s%s; write more, or less there",
			formatDuration(r.MaxTTL), formatDuration(r.MinTTL), b.lineOf(minKey))
	}
	return r
}

func (b *builder) preempt() Preempt {
	const key = "group.preempt"
	c := b.get(key)
	b.show(key, c.value, c.origin)
	switch c.value {
	case "off":
		return Preempt{}
	case "immediate":
		return Preempt{On: true}
	}
	d, err := time.ParseDuration(c.value)
	if err != nil || d < 0 || d > day {
		b.bad(key, "%s is none of off, immediate, or a duration up to 24h such as 5m; write one of them",
			printable(c.value))
		return Preempt{}
	}
	return Preempt{On: true, After: d}
}
