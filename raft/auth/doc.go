// Package auth proves who is at the other end of a connection, by group keys or certificates.
package auth
