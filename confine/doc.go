// Package confine takes from this process what it does not need: capabilities, new privileges, dumps and system calls.
package confine
