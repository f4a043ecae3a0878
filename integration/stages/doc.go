// Stages runs the stages of `make test`, and tells at the end how long each
// took and which tests were skipped.
package main
