// Package track probes the operator's conditions for this node to be holder.
package track
