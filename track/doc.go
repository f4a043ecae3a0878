// Package track finds out whether this node is fit to hold, by asking what the
// operator wants asked.
package track
