package main

import (
	"bytes"
	"cmp"
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/apk"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

// scripts run on the machine that a package is installed on.
//
//go:embed packaging/*.sh
var scripts embed.FS

// A format is one kind of package, and where its distributions have things.
type format struct {
	name     string
	packager nfpm.Packager
	arch     func(arch) string
	scripts  map[string]string // of the package's life, by their part
}

func formats() []format {
	return []format{
		{"deb", deb.Default, func(a arch) string { return a.deb }, map[string]string{
			"postinstall": "postinst.sh", "preremove": "prerm.sh", "postremove": "deb-postrm.sh",
		}},
		{"rpm", rpm.DefaultRPM, func(a arch) string { return a.rpm }, map[string]string{
			"postinstall": "postinst.sh", "preremove": "rpm-preun.sh", "postremove": "rpm-postun.sh",
		}},
		{"apk", apk.Default, func(a arch) string { return a.apk }, map[string]string{"postinstall": "apk-postinst.sh"}},
	}
}

// packages writes deb, rpm and apk for one architecture.
func (r *release) packages(a arch, from []file) error {
	dir, err := os.MkdirTemp("", "appliance-packages-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, f := range formats() {
		if err := r.pack(f, a, from, dir); err != nil {
			return fmt.Errorf("%s for %s: %w", f.name, a.name, err)
		}
	}
	return nil
}

// pack writes one package. The library takes files from disk, so they are laid out below dir.
func (r *release) pack(f format, a arch, from []file, dir string) error {
	info := r.info(f, a)
	lay := func(name string, data []byte, mode os.FileMode) (string, error) {
		path := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		err := os.WriteFile(path, data, mode)
		if err == nil {
			err = os.Chtimes(path, r.at, r.at) // apk's scripts have the times of these files
		}
		return path, err
	}
	for _, p := range placed(from, f.name) {
		if p.kind == files.TypeDir {
			info.Contents = append(info.Contents, r.content(p, ""))
			continue
		}
		path, err := lay(p.to, p.data, p.mode)
		if err != nil {
			return err
		}
		info.Contents = append(info.Contents, r.content(p, path))
	}
	for part, name := range f.scripts {
		data, err := scripts.ReadFile("packaging/" + name)
		if err != nil {
			return err
		}
		path, err := lay(f.name+"-"+name, data, 0o755)
		if err != nil {
			return err
		}
		switch part {
		case "postinstall":
			info.Scripts.PostInstall = path
		case "preremove":
			info.Scripts.PreRemove = path
		case "postremove":
			info.Scripts.PostRemove = path
		}
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, f.name); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := f.packager.Package(info, &b); err != nil {
		return err
	}
	return r.write(fmt.Sprintf("appliance_%s_linux_%s.%s", r.version.word, a.name, f.name), b.Bytes())
}

func (r *release) info(f format, a arch) *nfpm.Info {
	v := r.version
	info := &nfpm.Info{
		Name: "appliance", Arch: f.arch(a), Platform: "linux", Version: v.number, VersionSchema: "none",
		Prerelease: v.pre, VersionMetadata: v.further, Section: "net", Priority: "optional",
		Maintainer: "The appliance authors <appliance@localhost>",
		Description: "one address that does not go down\n For kube-apiservers or any TCP servers: a highly available " +
			"virtual IP with load balancing.",
		License: "Apache-2.0", MTime: r.at, DisableGlobbing: true, Homepage: "",
	}
	if f.name == "apk" && v.further != "" {
		info.Version, info.VersionMetadata = v.number+"_p"+cmp.Or(strings.Split(v.further, ".")[0], "0"), ""
	}
	info.Release = "1"
	info.RPM.BuildHost = "localhost"
	info.RPM.Compression = "gzip"
	return info
}

// A place is where a package has a file.
type place struct {
	to   string
	mode os.FileMode
	kind string // of nfpm: a directory, or a configuration file that is kept
	data []byte
}

// placed lays an archive's files out as distributions do.
func placed(from []file, format string) (all []place) {
	to := map[string]string{
		"appliance":                  "/usr/bin/appliance",
		"LICENSE":                    "/usr/share/doc/appliance/copyright",
		"README.md":                  "/usr/share/doc/appliance/README.md",
		"config.yaml":                "/usr/share/doc/appliance/config.yaml",
		"appliance.service":          "/usr/lib/systemd/system/appliance.service",
		"monitoring/dashboard.json":  "/usr/share/doc/appliance/dashboard.json",
		"monitoring/rules.yaml":      "/usr/share/doc/appliance/rules.yaml",
		"man/appliance.8":            "/usr/share/man/man8/appliance.8",
		"completions/appliance.bash": "/usr/share/bash-completion/completions/appliance",
		"completions/appliance.zsh":  "/usr/share/zsh/vendor-completions/_appliance",
		"completions/appliance.fish": "/usr/share/fish/vendor_completions.d/appliance.fish",
	}
	if format == "deb" {
		to["appliance.service"] = "/lib/systemd/system/appliance.service"
	}
	for _, f := range from {
		p := place{to[f.path], f.mode, files.TypeFile, f.data}
		if f.path == "appliance.service" {
			if format == "apk" {
				continue // Alpine has OpenRC
			}
			p.data = bytes.ReplaceAll(f.data, []byte("/usr/local/bin/appliance"), []byte("/usr/bin/appliance"))
		}
		all = append(all, p)
	}
	return append(all,
		place{"/etc/appliance", 0o700, files.TypeDir, nil},
		place{"/var/lib/appliance", 0o700, files.TypeDir, nil})
}

func (r *release) content(p place, source string) *files.Content {
	return &files.Content{
		Source: source, Destination: p.to, Type: p.kind,
		FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: p.mode, MTime: r.at},
	}
}
