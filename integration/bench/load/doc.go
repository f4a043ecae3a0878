// Package load is a client and a server that cost little, for measuring what
// stands between them.
package load
