// Package statustest makes up a group of three nodes for tests of what is shown.
package statustest
