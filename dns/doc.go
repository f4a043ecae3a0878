// Package dns keeps the addresses of names, as long as their records live.
//
// Its goroutines, all of which Run waits for:
//
//	follow (one per name)  owns the look-ups of that name
//
// Answers are kept under a lock that is never held during a look-up.
package dns
