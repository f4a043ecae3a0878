// Package vm runs a program of this host in a virtual machine whose kernel
// has what the host's own lacks.
//
// The guest sees the host's files through 9p under an overlay: it reads all
// of them and writes none. There is no network but what the program makes.
// Everything is emulated, so that no /dev/kvm is needed; expect a fifth to a
// tenth of the host's speed.
package vm
