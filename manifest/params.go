package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"

	"appliance/configs"
)

// Params are what a manifest has to know of the node that it is for.
type Params struct {
	// Name and Namespace of the pod; appliance and kube-system if empty.
	Name, Namespace string
	// Image is the container image. The unit needs none.
	Image string
	// Binary is the program's path; /appliance in an image and
	// /usr/local/bin/appliance on a host if empty.
	Binary string
	// Args follow `appliance start`.
	Args []string
	// Files that the appliance reads: its configuration, keys and certificates.
	Files []string
	// DataDir has to survive a reboot; /var/lib/appliance if empty. Socket is in a directory of its own;
	// /run/appliance/appliance.sock if empty.
	DataDir, Socket string
	// LowPort says that a port below 1024 is served.
	LowPort bool
	// Programs says that tracks or hooks run programs as another user.
	Programs bool
	// AsRoot says why the systemd service has to run as root; empty: it has a user of its own.
	AsRoot string
	// UserSpace says that the kernel is not programmed: this is a worker without virtual addresses.
	UserSpace bool
}

// New takes from cfg what a manifest has to know. file is the configuration file, empty if there is none or args names
// it; args are the arguments beside it.
func New(cfg *configs.Config, image, file string, args []string) Params {
	o := Params{Image: image, Args: args, DataDir: cfg.DataDir, Socket: cfg.Socket, UserSpace: len(cfg.VIPs) == 0}
	const flag = "--config="
	if i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, flag) }); i >= 0 {
		file = strings.TrimPrefix(args[i], flag)
	} else if file != "" {
		o.Args = append([]string{flag + file}, args...)
	}
	files := []string{
		file,
		cfg.Group.KeyFile, cfg.Group.OldKeyFile, cfg.Group.CAFile, cfg.Group.CertFile, cfg.Group.CertKeyFile,
		cfg.Admin.TokenFile, cfg.Admin.CertFile, cfg.Admin.CertKeyFile,
	}
	for _, r := range cfg.Announce.BGP.Neighbours {
		files = append(files, r.PasswordFile)
	}
	for _, f := range files {
		if f != "" {
			o.Files = append(o.Files, f)
		}
	}
	o.Programs = cfg.ProgramsOfOthers()
	o.AsRoot = o.needsRoot(cfg)
	o.LowPort = cfg.SpeaksBGP() && cfg.Announce.BGP.Port > 0 && cfg.Announce.BGP.Port < 1024
	for _, lb := range cfg.LoadBalancers {
		o.LowPort = o.LowPort || lb.Port < 1024
	}
	return o
}

// needsRoot says why a systemd service of a user of its own would not do, or nothing. Such a user gets what root has below
// /etc/appliance, and what systemd makes for it below /var/lib and /run.
func (o Params) needsRoot(cfg *configs.Config) string {
	if cfg.ProgramsOfRoot() {
		return "it runs programs with `user: root`"
	}
	for _, f := range o.Files {
		if path.IsAbs(f) && below("/etc/appliance", f) == "" {
			return f + " is not below /etc/appliance"
		}
	}
	if below("/var/lib", cmp.Or(o.DataDir, "/var/lib/appliance")) == "" {
		return "dataDir is not below /var/lib"
	}
	if below("/run", path.Dir(cmp.Or(o.Socket, "/run/appliance/appliance.sock"))) == "" {
		return "socket is not in a directory below /run"
	}
	return ""
}

// withDefaults fills in what is empty, and refuses what a manifest cannot express.
func (o Params) withDefaults(binary string) (Params, error) {
	o.Name = cmp.Or(o.Name, "appliance")
	o.Namespace = cmp.Or(o.Namespace, "kube-system")
	o.Binary = cmp.Or(o.Binary, binary)
	o.DataDir = cmp.Or(o.DataDir, "/var/lib/appliance")
	o.Socket = cmp.Or(o.Socket, "/run/appliance/appliance.sock")
	paths := append([]string{o.Binary, o.DataDir, o.Socket}, o.Files...)
	for _, p := range paths {
		if !path.IsAbs(p) {
			return o, fmt.Errorf("%s is not an absolute path; begin it with /, "+
				"because the appliance starts in another directory", p)
		}
	}
	// systemd would make a shared directory the appliance's alone, and a pod would see all of it.
	for _, p := range []string{o.DataDir, path.Dir(o.Socket)} {
		if strings.Count(path.Clean(p), "/") < 2 {
			return o, fmt.Errorf("%s is not for the appliance alone; use a directory of its own, "+
				"such as /var/lib/appliance for data and /run/appliance for the socket", p)
		}
	}
	for _, s := range append(paths, o.Args...) {
		if strings.ContainsFunc(s, unicode.IsControl) {
			return o, fmt.Errorf("%q has a control character, which a manifest cannot carry; remove it", s)
		}
	}
	return o, nil
}

// programCapabilities are to run programs as nobody, and to end them.
var programCapabilities = []string{"SETUID", "SETGID", "KILL"}

// capabilities are all that the appliance needs (R14).
func (o Params) capabilities() []string {
	caps := []string{
		"NET_ADMIN", // to bind the virtual addresses and program the kernel
		"NET_RAW",   // to answer ARP and neighbour solicitations
	}
	if o.LowPort {
		caps = append(caps, "NET_BIND_SERVICE")
	}
	if o.Programs {
		caps = append(caps, programCapabilities...)
	}
	return caps
}

var errNoImage = errors.New("no image is named; give the container image with --image")
