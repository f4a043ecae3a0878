// Package routes keeps a route for each virtual address in the kernel, for another daemon of this host to announce.
package routes
