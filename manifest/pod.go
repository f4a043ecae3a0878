package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// object is a Kubernetes object or a part of one, as it is printed. The tests read what is printed into Kubernetes' own
// types, strictly: in the program, these would take a quarter of its size.
type object map[string]any

// nodeCritical is the priority of the class system-node-critical. A static pod needs the number too: the kubelet cannot
// look classes up before it reaches an API server, and this pod is what makes one reachable.
const nodeCritical = 2000001000

// grace is the time from SIGTERM to SIGKILL in seconds: handing over takes milliseconds, the rest is for draining open
// connections.
const grace = 30

// Pod is a static pod, for /etc/kubernetes/manifests.
func Pod(o Params) ([]byte, error) {
	spec, o, err := podSpec(o)
	if err != nil {
		return nil, err
	}
	spec["priority"] = nodeCritical
	return write(object{"apiVersion": "v1", "kind": "Pod", "metadata": metadata(o), "spec": spec})
}

// DaemonSet runs the appliance on every control-plane node.
func DaemonSet(o Params) ([]byte, error) {
	if slices.ContainsFunc(o.Args, func(a string) bool { return strings.HasPrefix(a, "--id=") }) {
		return nil, errors.New("--id names one node, and a daemonset runs on all of them; " +
			"leave it out, nodes find themselves by their addresses")
	}
	spec, o, err := podSpec(o)
	if err != nil {
		return nil, err
	}
	spec["nodeSelector"] = object{"node-role.kubernetes.io/control-plane": ""}
	// A node without its load balancer is worse than one that is not ready: the appliance tolerates every taint.
	spec["tolerations"] = []object{
		{"operator": "Exists", "effect": "NoSchedule"},
		{"operator": "Exists", "effect": "NoExecute"},
	}
	return write(object{
		"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata(o),
		"spec": object{
			"selector": object{"matchLabels": labels(o)},
			"template": object{"metadata": object{"labels": labels(o)}, "spec": spec},
			// One at a time: losing a second one could cost the majority.
			"updateStrategy": object{"type": "RollingUpdate", "rollingUpdate": object{"maxUnavailable": 1}},
		},
	})
}

func metadata(o Params) object {
	return object{"name": o.Name, "namespace": o.Namespace, "labels": labels(o)}
}

func labels(o Params) object {
	return object{"app.kubernetes.io/name": "appliance", "app.kubernetes.io/instance": o.Name}
}

func podSpec(o Params) (object, Params, error) {
	o, err := o.withDefaults("/appliance")
	if err != nil {
		return nil, o, err
	}
	if o.Image == "" || strings.ContainsAny(o.Image, " \t\n") {
		return nil, o, errNoImage
	}
	probe := func(flag string, every, timeout, failures int) object {
		return object{
			"exec":          object{"command": []string{o.Binary, "health", flag, "--socket=" + o.Socket}},
			"periodSeconds": every, "timeoutSeconds": timeout, "failureThreshold": failures,
		}
	}
	// A restart hands the address over; being marked not ready costs nothing. So the first takes more failures.
	live, ready := probe("--live", 10, 5, 6), probe("--ready", 5, 5, 2)
	live["initialDelaySeconds"] = 10
	vols, mounts := volumes(o)
	return object{
		"hostNetwork":                   true,
		"dnsPolicy":                     "Default", // cluster DNS is not needed: no name is looked up
		"priorityClassName":             "system-node-critical",
		"automountServiceAccountToken":  false,
		"enableServiceLinks":            false,
		"terminationGracePeriodSeconds": grace,
		"securityContext":               object{"seccompProfile": object{"type": "RuntimeDefault"}},
		"containers": []object{{
			"name":    "appliance",
			"image":   o.Image,
			"command": []string{o.Binary},
			"args":    literal(append([]string{"start"}, o.Args...)),
			// The registry may be behind the address that this pod serves.
			"imagePullPolicy": "IfNotPresent",
			"securityContext": object{
				// Only root may read the key file, the data and the socket, and write kernel parameters. The
				// capabilities bound what root can do.
				"runAsUser":                0,
				"privileged":               false,
				"allowPrivilegeEscalation": false,
				"readOnlyRootFilesystem":   true,
				"capabilities":             object{"drop": []string{"ALL"}, "add": o.capabilities()},
			},
			// No limits: a process that is throttled, or killed for its memory, looks dead to its peers.
			"resources":      object{"requests": object{"cpu": "100m", "memory": "64Mi"}},
			"livenessProbe":  live,
			"readinessProbe": ready,
			"volumeMounts":   mounts,
		}},
		"volumes": vols,
	}, o, nil
}

// literal keeps the kubelet from expanding $(NAME) in args, which it changes in place.
func literal(args []string) []string {
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "$(", "$$(")
	}
	return args
}

// HostSysctls is where the pod can write the kernel parameters of the host's network: below it is net/, as below
// /proc/sys.
const HostSysctls = "/host/proc/sys"

// volumes are the host's paths that the pod sees. All but the kernel parameters have the same path inside.
func volumes(o Params) (vols, mounts []object) {
	mount := func(name, path, at, kind string, readOnly bool) {
		if slices.ContainsFunc(mounts, func(m object) bool { return m["mountPath"] == at }) {
			return
		}
		vols = append(vols, object{"name": name, "hostPath": object{"path": path, "type": kind}})
		m := object{"name": name, "mountPath": at}
		if readOnly {
			m["readOnly"] = true
		}
		mounts = append(mounts, m)
	}
	add := func(name, at, kind string, readOnly bool) { mount(name, at, at, kind, readOnly) }
	add("data", path.Clean(o.DataDir), "DirectoryOrCreate", false)
	add("run", path.Dir(o.Socket), "DirectoryOrCreate", false)
	if !o.UserSpace {
		// A container's own /proc/sys is read-only. Through this mount, NET_ADMIN is enough to write below net/.
		mount("sysctl", "/proc/sys/net", HostSysctls+"/net", "Directory", false)
	}
	for _, f := range o.Files {
		// The directory, so that the pod sees a file that is replaced by renaming; the file alone where others use the
		// directory, such as /etc.
		at, kind := path.Dir(f), "Directory"
		if strings.Count(at, "/") < 2 {
			at, kind = path.Clean(f), "File"
		}
		add(fmt.Sprintf("config-%d", len(vols)-2), at, kind, true)
	}
	return vols, mounts
}

func write(o object) ([]byte, error) {
	var text bytes.Buffer
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := errors.Join(e.Encode(o), e.Close()); err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	return text.Bytes(), nil
}
