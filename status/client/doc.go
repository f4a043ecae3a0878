// Package client asks a running appliance over its unix socket.
package client
