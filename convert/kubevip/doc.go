// Package kubevip reads the config.yaml of kube-vip 0.1.
package kubevip
