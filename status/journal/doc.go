// Package journal keeps the latest events of this node in memory and on disk.
package journal
