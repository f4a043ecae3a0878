// Package report exchanges reports between the nodes of a group, each about the node that sends it.
package report
