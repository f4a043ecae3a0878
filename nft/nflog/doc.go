// Package nflog hears from the kernel which connections begin, whichever data plane serves them.
//
// Its goroutine is the caller of Run: it owns the socket, and what was heard last.
package nflog
