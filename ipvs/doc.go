// Package ipvs is the data plane that lets the kernel's IP Virtual Server
// spread connections over backends.
package ipvs
