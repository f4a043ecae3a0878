package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

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
	priority := int32(nodeCritical)
	spec.Priority = &priority
	return write(corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, Labels: labels(o)},
		Spec:       spec,
	})
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
	spec.NodeSelector = map[string]string{"node-role.kubernetes.io/control-plane": ""}
	// A node without its load balancer is worse than one that is not ready: the appliance tolerates every taint.
	spec.Tolerations = []corev1.Toleration{
		{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
		{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	}
	one := intstr.FromInt32(1)
	return write(appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: o.Namespace, Labels: labels(o)},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels(o)},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels(o)}, Spec: spec},
			// One at a time: losing a second one could cost the majority.
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type:          appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one},
			},
		},
	})
}

func labels(o Params) map[string]string {
	return map[string]string{"app.kubernetes.io/name": "appliance", "app.kubernetes.io/instance": o.Name}
}

func podSpec(o Params) (corev1.PodSpec, Params, error) {
	o, err := o.withDefaults("/appliance")
	if err != nil {
		return corev1.PodSpec{}, o, err
	}
	if o.Image == "" || strings.ContainsAny(o.Image, " \t\n") {
		return corev1.PodSpec{}, o, errNoImage
	}
	var (
		no, yes = false, true
		// Only root may read the key file, the data and the socket, and write kernel parameters. The capabilities
		// bound what root can do.
		root        = int64(0)
		seconds     = int64(grace)
		caps        []corev1.Capability
		vols, mount = volumes(o)
	)
	for _, c := range o.capabilities() {
		caps = append(caps, corev1.Capability(c))
	}
	probe := func(flag string, every, timeout, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{
				Command: []string{o.Binary, "health", flag, "--socket=" + o.Socket},
			}},
			PeriodSeconds: every, TimeoutSeconds: timeout, FailureThreshold: failures,
		}
	}
	// A restart hands the address over; being marked not ready costs nothing. So the first takes more failures.
	live, ready := probe("--live", 10, 5, 6), probe("--ready", 5, 5, 2)
	live.InitialDelaySeconds = 10
	return corev1.PodSpec{
		HostNetwork:                   true,
		DNSPolicy:                     corev1.DNSDefault, // cluster DNS is not needed: no name is looked up
		PriorityClassName:             "system-node-critical",
		AutomountServiceAccountToken:  &no,
		EnableServiceLinks:            &no,
		TerminationGracePeriodSeconds: &seconds,
		SecurityContext: &corev1.PodSecurityContext{
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name:    "appliance",
			Image:   o.Image,
			Command: []string{o.Binary},
			Args:    literal(append([]string{"start"}, o.Args...)),
			// The registry may be behind the address that this pod serves.
			ImagePullPolicy: corev1.PullIfNotPresent,
			SecurityContext: &corev1.SecurityContext{
				RunAsUser:                &root,
				Privileged:               &no,
				AllowPrivilegeEscalation: &no,
				ReadOnlyRootFilesystem:   &yes,
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: caps},
			},
			// No limits: a process that is throttled, or killed for its memory, looks dead to its peers.
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("100m"),
				corev1.ResourceMemory: resource.MustParse("64Mi"),
			}},
			LivenessProbe:  live,
			ReadinessProbe: ready,
			VolumeMounts:   mount,
		}},
		Volumes: vols,
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
func volumes(o Params) ([]corev1.Volume, []corev1.VolumeMount) {
	var vols []corev1.Volume
	var mounts []corev1.VolumeMount
	mount := func(name, path, at string, kind corev1.HostPathType, readOnly bool) {
		if slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.MountPath == at }) {
			return
		}
		vols = append(vols, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind},
		}})
		mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: at, ReadOnly: readOnly})
	}
	add := func(name, at string, kind corev1.HostPathType, readOnly bool) { mount(name, at, at, kind, readOnly) }
	add("data", path.Clean(o.DataDir), corev1.HostPathDirectoryOrCreate, false)
	add("run", path.Dir(o.Socket), corev1.HostPathDirectoryOrCreate, false)
	if !o.UserSpace {
		// A container's own /proc/sys is read-only. Through this mount, NET_ADMIN is enough to write below net/.
		mount("sysctl", "/proc/sys/net", HostSysctls+"/net", corev1.HostPathDirectory, false)
	}
	for _, f := range o.Files {
		// The directory, so that the pod sees a file that is replaced by renaming; the file alone where others use the
		// directory, such as /etc.
		at, kind := path.Dir(f), corev1.HostPathDirectory
		if strings.Count(at, "/") < 2 {
			at, kind = path.Clean(f), corev1.HostPathFile
		}
		add(fmt.Sprintf("config-%d", len(vols)-2), at, kind, true)
	}
	return vols, mounts
}

// write prints an object without the status, which every Kubernetes type has and only the cluster sets.
func write(object any) ([]byte, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	delete(fields, "status")
	return yaml.Marshal(fields)
}
