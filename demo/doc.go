// Package demo shows the appliance at work: it kills the holder of three
// before the eyes of whoever watches.
package demo
