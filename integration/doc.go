// Package integration tests the appliance as its users have it: the real
// program, as processes on machines with a real link between them.
package integration
