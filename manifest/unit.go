package manifest

import (
	"fmt"
	"path"
	"strings"
	"text/template"
)

// Unit is a systemd service, for /etc/systemd/system/appliance.service.
func Unit(o Params) ([]byte, error) {
	o, err := o.withDefaults("/usr/local/bin/appliance")
	if err != nil {
		return nil, err
	}
	words := append([]string{o.Binary, "start"}, o.Args...)
	for i, w := range words {
		words[i] = quote(w)
	}
	o.LowPort = true // a file that is read again may bring one
	var text strings.Builder
	first := append([]string{words[0], "prepare"}, words[2:]...)
	err = unit.Execute(&text, map[string]any{
		"Exec":    strings.Join(words, " "),
		"Prepare": strings.Join(first, " "),
		"AsRoot":  o.AsRoot,
		"Reload":  quote(o.Binary) + " reload " + quote("--socket="+o.Socket),
		"Caps":    linuxNames(o.capabilities()),
		"Grace":   grace,
		"State":   below("/var/lib", o.DataDir),
		"Runtime": below("/run", path.Dir(o.Socket)),
		"Write":   writable(o),
	})
	if err != nil {
		return nil, fmt.Errorf("write the unit: %w", err)
	}
	return []byte(text.String()), nil
}

// linuxNames writes capabilities as systemd has them.
func linuxNames(caps []string) string { return "CAP_" + strings.Join(caps, " CAP_") }

// DropIn is what the unit that Unit makes without knowing a configuration needs for o beside it; empty if nothing.
func DropIn(o Params) []byte {
	switch {
	case o.AsRoot != "":
		return []byte("# As root, because " + o.AsRoot + ".\n[Service]\nUser=root\nGroup=root\nAmbientCapabilities=\n")
	case o.Programs:
		more := linuxNames(programCapabilities)
		return []byte("# To run programs as nobody, and to end them.\n[Service]\nCapabilityBoundingSet=" + more +
			"\nAmbientCapabilities=" + more + "\n")
	}
	return nil
}

// below is dir relative to parent, or empty if systemd cannot make it there.
func below(parent, dir string) string {
	name, ok := strings.CutPrefix(path.Clean(dir), parent+"/")
	if !ok || quote(name) != name {
		return ""
	}
	return name
}

// writable are the directories that systemd does not make, quoted.
func writable(o Params) string {
	var dirs []string
	if below("/var/lib", o.DataDir) == "" {
		dirs = append(dirs, quote(path.Clean(o.DataDir)))
	}
	if dir := path.Dir(o.Socket); below("/run", dir) == "" {
		dirs = append(dirs, quote(dir))
	}
	return strings.Join(dirs, " ")
}

// quote writes a word as systemd.service(5) has to read it.
func quote(word string) string {
	word = strings.NewReplacer("%", "%%", "$", "$$", `\`, `\\`, `"`, `\"`).Replace(word)
	if word == "" || strings.ContainsAny(word, ` ;'"\`) {
		return `"` + word + `"`
	}
	return word
}

var unit = template.Must(template.New("unit").Parse(`[Unit]
Description=Highly available virtual IP with load balancing
Wants=network-online.target
After=network-online.target
# Never give up: the network or the disk may come back after hours.
StartLimitIntervalSec=0

[Service]
Type=exec
{{if not .AsRoot}}ExecStartPre=-+{{.Prepare}} --data
{{end}}ExecStart={{.Exec}}
# A changed file is noticed anyway; this says what is wrong with it.
{{if not .AsRoot}}ExecReload=-+{{.Prepare}}
{{end}}ExecReload={{.Reload}}
Restart=always
RestartSec=500ms
# But not with a configuration that is not valid (EX_CONFIG): correct what the
# journal names, then start it again.
RestartPreventExitStatus=78
# On SIGTERM the address is handed over at once; the rest is for draining.
KillMode=mixed
TimeoutStopSec={{.Grace}}s

# What keeps elections calm on a busy node.
Nice=-15
CPUWeight=1000
IOWeight=1000
OOMScoreAdjust=-900
# Nothing of it is swapped out.
LimitMEMLOCK=infinity
# Two files for each connection that is forwarded in user space.
LimitNOFILE=1048576
{{if .State}}
StateDirectory={{.State}}
StateDirectoryMode=0700{{end}}{{if .Runtime}}
RuntimeDirectory={{.Runtime}}
RuntimeDirectoryMode=0700{{end}}{{if .Write}}
# systemd does not make these; they have to exist.
ReadWritePaths={{.Write}}{{end}}
UMask=0077

{{if .AsRoot}}# As root, because {{.AsRoot}}; bounded to this:
{{else}}# A user of its own, with no more than this. It cannot write its configuration and
# keys: they are root's, and its group may read them. "appliance prepare" sees to
# that, as root, and gives it the data that an older version or root has left.
User=appliance
Group=appliance
AmbientCapabilities={{.Caps}}
{{end}}CapabilityBoundingSet={{.Caps}}
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectProc=invisible
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
# ProtectKernelTunables stays off: a few switches of the network have to be
# written below /proc/sys/net.

[Install]
WantedBy=multi-user.target
`))
