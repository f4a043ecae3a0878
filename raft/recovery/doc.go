// Package recovery restarts a group of which only one member is left.
package recovery
