package configs

import (
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// Admin says where the state is shown, and to whom.
type Admin struct {
	// Listen are addresses with ports, or unix:/path. Empty means nowhere.
	Listen []string
	// Path is where the page is: "/", or a path without a slash at its end.
	Path  string
	Hosts []string
	Users []User
	// TokenFile holds a bearer token.
	TokenFile   string
	CertFile    string
	CertKeyFile string
	HideVersion bool
	// Operate lets Users give orders on the page.
	Operate bool
}

// IsDefault reports whether Listen is the default. Then a port that is taken is no
// reason not to start.
func (a Admin) IsDefault() bool {
	s, _ := setting(keyListen + "[0]")
	return len(a.Listen) == 1 && a.Listen[0] == s.Default
}

// A User may see what the admin listener shows.
type User struct {
	Name string
	// PasswordHash is bcrypt's.
	PasswordHash string
}

// AdminPort is next to the default peer port, so that the two are one range. It is
// none of the ports of Kubernetes, etcd, haproxy and node_exporter.
const AdminPort = 10001

const (
	keyListen = "admin.listen"
	keyUsers  = "admin.users"
	adminOff  = "off"

	keyOperate = "admin.operate"
)

func (b *builder) admin() Admin {
	a := Admin{Path: b.adminPath(), Hosts: b.adminHosts(), HideVersion: b.bool("admin.hideVersion"),
		Operate: b.bool(keyOperate)}
	if b.lists[keyListen] == 0 {
		a.Listen = []string{b.defaultOf(keyListen + "[0]")}
		b.show(keyListen+"[0]", a.Listen[0], Origin{})
	}
	for key := range b.elements(keyListen) {
		value := b.get(key).value
		b.show(key, value, b.origin(key))
		switch {
		case value == adminOff && b.lists[keyListen] == 1:
		case value == adminOff:
			b.bad(key, "off is there beside addresses; write off alone, or the addresses")
		default:
			if at, ok := b.adminAddress(key, value); ok {
				a.Listen = append(a.Listen, at)
			}
		}
	}
	for key := range b.elements(keyUsers) {
		if u, ok := b.adminUser(key); ok {
			a.Users = append(a.Users, u)
		}
	}
	a.TokenFile = b.path("admin.tokenFile")
	a.CertFile, a.CertKeyFile = b.path("admin.certFile"), b.path("admin.certKeyFile")
	return a
}

// adminAddress reads address:port, address, :port for every address, or unix:/path.
func (b *builder) adminAddress(key, value string) (string, bool) {
	if file, ok := strings.CutPrefix(value, "unix:"); ok {
		if !strings.HasPrefix(file, "/") || strings.ContainsRune(file, 0) {
			b.bad(key, "%s is no socket; write unix:/run/appliance/admin.sock", printable(value))
			return "", false
		}
		b.checkSocket(key, file)
		return value, true
	}
	if port, ok := strings.CutPrefix(value, ":"); ok {
		value = "[::]:" + port
	}
	if addr, err := netip.ParseAddr(value); err == nil {
		value = netip.AddrPortFrom(addr, AdminPort).String()
	}
	at, err := netip.ParseAddrPort(value)
	if err != nil || at.Port() == 0 {
		b.bad(key, "%s is no address; write 127.0.0.1:%d, [::1]:%d, the node's own address, unix:/path or off",
			printable(value), AdminPort, AdminPort)
		return "", false
	}
	return at.String(), true
}

func (b *builder) adminPath() string {
	p := b.text("admin.path")
	trimmed := strings.TrimRight(p, "/")
	for _, r := range trimmed {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/", r) {
			b.bad("admin.path", "%s has characters that a path here cannot have; write letters, digits, - and _, such as /stats",
				printable(p))
			return "/"
		}
	}
	if !strings.HasPrefix(p, "/") || strings.Contains(trimmed, "//") {
		b.bad("admin.path", "%s is not a path; write one that begins with /, such as /stats", printable(p))
		return "/"
	}
	if trimmed == "" {
		return "/"
	}
	return trimmed
}

func (b *builder) adminHosts() []string {
	var hosts []string
	for key := range b.elements("admin.hosts") {
		name := strings.ToLower(b.get(key).value)
		b.show(key, name, b.origin(key))
		if name == "" || strings.ContainsAny(name, ":/*@ ") || printable(name) != name {
			b.bad(key, "%s is not the name of a host; write it without scheme and port, such as vip.example.org",
				printable(name))
			continue
		}
		hosts = append(hosts, strings.TrimSuffix(name, "."))
	}
	return hosts
}

func (b *builder) adminUser(key string) (User, bool) {
	u := User{Name: b.get(key + ".name").value, PasswordHash: b.get(key + ".passwordHash").value}
	if u.Name == "" || strings.Contains(u.Name, ":") || printable(u.Name) != u.Name {
		b.bad(key+".name", "%s is not a user's name; write one without colons", printable(u.Name))
		return u, false
	}
	b.show(key+".name", u.Name, b.origin(key+".name"))
	for other := range b.elements(keyUsers) {
		if other == key {
			break
		}
		if b.get(other+".name").value == u.Name {
			b.bad(key+".name", "%s is there twice; keep one of the two", printable(u.Name))
		}
	}
	cost, err := bcrypt.Cost([]byte(u.PasswordHash))
	switch {
	case u.PasswordHash == "":
		b.bad(key+".passwordHash", "is missing; `appliance passwd` prints one")
		return u, false
	case err != nil:
		// The value may be the password itself, so it is not repeated.
		b.bad(key+".passwordHash", "is not a bcrypt hash; "+
			"`appliance passwd` prints one, as does `htpasswd -nB %s` behind the colon", printable(u.Name))
		return u, false
	case cost > 14:
		b.bad(key+".passwordHash", "has a cost of %s, which takes the node seconds of work per guess; "+
			"write one of at most 14", strconv.Itoa(cost))
		return u, false
	}
	b.cfg.values = append(b.cfg.values, Value{
		Key: key + ".passwordHash", Value: "(hidden)", Origin: b.origin(key + ".passwordHash"), secret: u.PasswordHash,
	})
	return u, true
}

// validateAdmin refuses to show the state to everybody, and to take addresses and ports
// that the appliance needs.
func (b *builder) validateAdmin() {
	a := b.cfg.Admin
	if (a.CertFile == "") != (a.CertKeyFile == "") {
		b.bad(keyListen, "certFile and certKeyFile are needed together; add the one that is missing")
	}
	if a.Operate && len(a.Users) == 0 && b.lists[keyUsers] == 0 {
		b.bad(keyOperate, "is true, but nobody is named who may give orders; write users below admin, "+
			"with what `appliance passwd` prints, or remove it")
	}
	seen := map[string]bool{}
	for _, at := range a.Listen {
		if seen[at] {
			b.bad(keyListen, "%s is there twice; remove one of the two", at)
		}
		seen[at] = true
		ap, err := netip.ParseAddrPort(at)
		if err != nil {
			continue // a unix socket, guarded by its permissions
		}
		b.validateAdminAddress(ap)
		if ap.Addr().IsLoopback() {
			continue
		}
		guarded := len(a.Users) > 0 || a.TokenFile != "" || b.lists[keyUsers] > 0
		switch {
		case a.CertFile == "" && a.Operate:
			b.bad(keyOperate, "is true, and passwords for %s would cross the network in clear; "+
				"write certFile and certKeyFile below admin, or listen on 127.0.0.1 only", at)
		case a.CertFile == "" && !guarded:
			b.bad(keyListen, "%s can be reached by other machines, and nothing keeps anybody out; "+
				"write certFile and certKeyFile, users or tokenFile below admin, or listen on 127.0.0.1", at)
		case a.CertFile == "":
			b.warn(b.origin(keyListen), keyListen, "passwords and tokens for %s cross the network in clear; "+
				"add certFile and certKeyFile", at)
		}
	}
}

func (b *builder) validateAdminAddress(at netip.AddrPort) {
	c := b.cfg
	for _, v := range c.VIPs {
		if at.Addr().Unmap() == v {
			b.bad(keyListen, "%s is a virtual address, which moves; write the node's own address or 127.0.0.1", at)
		}
	}
	everywhere := at.Addr().IsUnspecified()
	for i, lb := range c.LoadBalancers {
		if !lb.BindToVIP && lb.Port == at.Port() {
			b.bad(keyListen, "%d is the port of load balancer %s, which takes it on every address; write another",
				at.Port(), printable(c.LoadBalancers[i].Name))
		}
	}
	for _, p := range c.Peers {
		if p.Port == at.Port() && (everywhere || p.Address == at.Addr().Unmap()) {
			b.bad(keyListen, "%d is the port on which peers talk to each other; write another", at.Port())
			break
		}
	}
}
