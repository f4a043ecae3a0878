// Package connlog writes lines about connections to where they are read, and never holds up who has them written.
//
// Its goroutine is Run's caller: it owns what is open.
package connlog
