// Package manifest prints the pod, DaemonSet or systemd unit that runs the appliance.
package manifest
