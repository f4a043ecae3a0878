// Package script runs an operator's program as another user, within limits of time, memory, processes and output.
//
// The file that was checked is the file that runs: it is opened once, checked with every directory and link on the way
// to it, and run by its descriptor. This program runs itself again for that (see RunIfChild): the child takes on the
// limits, gives up its capabilities and its user, and becomes the program.
package script
