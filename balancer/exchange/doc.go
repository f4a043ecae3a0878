// Package exchange talks to a server over one connection: what is sent, and what has to come back.
package exchange
