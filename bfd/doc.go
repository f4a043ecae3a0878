// Package bfd notices within milliseconds that a router, or the way to it, is gone: Bidirectional Forwarding Detection
// (RFC 5880) in asynchronous mode, over one hop (RFC 5881) or several (RFC 5883), without authentication and echo.
//
//	goroutine   owns
//	receive     one per port and family: a socket
//	session     one per router: its state and its timers
package bfd
