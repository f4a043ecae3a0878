package manifest_test

import (
	"fmt"
	"os"

	"appliance/configs"
	"appliance/manifest"
)

// The pod for a configuration that is given by two flags.
func ExamplePod() {
	flags := map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13"}
	source := configs.Source{
		Flag:       func(name string) (string, bool) { v, ok := flags[name]; return v, ok },
		FileExists: func(string) bool { return true },
	}
	cfg, err := configs.Parse("", nil, source)
	if err != nil {
		fmt.Println(err)
		return
	}
	pod, err := manifest.Pod(manifest.New(cfg, "registry.example/appliance:v1", "", source.Args()))
	if err != nil {
		fmt.Println(err)
		return
	}
	os.Stdout.Write(pod)
	// Output:
	// apiVersion: v1
	// kind: Pod
	// metadata:
	//   labels:
	//     app.kubernetes.io/instance: appliance
	//     app.kubernetes.io/name: appliance
	//   name: appliance
	//   namespace: kube-system
	// spec:
	//   automountServiceAccountToken: false
	//   containers:
	//   - args:
	//     - start
	//     - --vip=192.0.2.10
	//     - --peers=192.0.2.11,192.0.2.12,192.0.2.13
	//     command:
	//     - /appliance
	//     image: registry.example/appliance:v1
	//     imagePullPolicy: IfNotPresent
	//     livenessProbe:
	//       exec:
	//         command:
	//         - /appliance
	//         - health
	//         - --live
	//         - --socket=/run/appliance/appliance.sock
	//       failureThreshold: 6
	//       initialDelaySeconds: 10
	//       periodSeconds: 10
	//       timeoutSeconds: 5
	//     name: appliance
	//     readinessProbe:
	//       exec:
	//         command:
	//         - /appliance
	//         - health
	//         - --ready
	//         - --socket=/run/appliance/appliance.sock
	//       failureThreshold: 2
	//       periodSeconds: 5
	//       timeoutSeconds: 5
	//     resources:
	//       requests:
	//         cpu: 100m
	//         memory: 64Mi
	//     securityContext:
	//       allowPrivilegeEscalation: false
	//       capabilities:
	//         add:
	//         - NET_ADMIN
	//         - NET_RAW
	//         drop:
	//         - ALL
	//       privileged: false
	//       readOnlyRootFilesystem: true
	//       runAsUser: 0
	//     volumeMounts:
	//     - mountPath: /var/lib/appliance
	//       name: data
	//     - mountPath: /run/appliance
	//       name: run
	//     - mountPath: /host/proc/sys/net
	//       name: sysctl
	//     - mountPath: /etc/appliance
	//       name: config-1
	//       readOnly: true
	//   dnsPolicy: Default
	//   enableServiceLinks: false
	//   hostNetwork: true
	//   priority: 2000001000
	//   priorityClassName: system-node-critical
	//   securityContext:
	//     seccompProfile:
	//       type: RuntimeDefault
	//   terminationGracePeriodSeconds: 30
	//   volumes:
	//   - hostPath:
	//       path: /var/lib/appliance
	//       type: DirectoryOrCreate
	//     name: data
	//   - hostPath:
	//       path: /run/appliance
	//       type: DirectoryOrCreate
	//     name: run
	//   - hostPath:
	//       path: /proc/sys/net
	//       type: Directory
	//     name: sysctl
	//   - hostPath:
	//       path: /etc/appliance
	//       type: Directory
	//     name: config-1
}
