// Package balancer decides which backends of each load balancer get traffic.
package balancer
