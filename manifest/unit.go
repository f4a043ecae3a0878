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
	caps := o.capabilities()
	for i, c := range caps {
		caps[i] = "CAP_" + c
	}
	var text strings.Builder
	err = unit.Execute(&text, map[string]any{
		"Exec":    strings.Join(words, " "),
		"Reload":  quote(o.Binary) + " reload " + quote("--socket="+o.Socket),
		"Caps":    strings.Join(caps, " "),
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
ExecStart={{.Exec}}
# A changed file is noticed anyway; this says what is wrong with it.
ExecReload={{.Reload}}
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

# Root, because the key and the socket are root's alone; bounded to this:
CapabilityBoundingSet={{.Caps}}
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
