// Package desired computes what a node should serve from everything that the node knows.
package desired
