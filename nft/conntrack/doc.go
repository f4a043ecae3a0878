// Package conntrack ends connections that the kernel translates to where nobody serves them any more.
package conntrack
