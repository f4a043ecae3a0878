// Package mask takes secrets out of text by their shape.
package mask
