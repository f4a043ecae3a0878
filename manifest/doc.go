// Package manifest prints the pod, daemonset or systemd unit that runs the appliance.
package manifest
