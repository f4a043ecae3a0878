// Package node wires the rooms of one node and runs them from start to stop.
package node
