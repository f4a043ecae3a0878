// Package conntrack corrects what the kernel knows of connections whose server is gone, or that were open before.
package conntrack
