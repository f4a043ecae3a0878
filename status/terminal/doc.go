// Package terminal writes snapshots and events for a person at a terminal.
package terminal
