// Package connlog writes lines, such as those about connections, to where they are read, and never holds up who has
// them written.
//
// Its goroutine is Run's caller: it owns what is open.
package connlog
