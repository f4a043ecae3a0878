// Package metrics offers what an appliance is doing to Prometheus.
package metrics
