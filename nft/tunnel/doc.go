// Package tunnel keeps the VXLAN device by which nodes behind different routers hand packets to each other.
package tunnel
