// Package scene sets the scene of integration tests and benchmarks: three
// nodes, servers, a client and watchers on one link.
package scene
