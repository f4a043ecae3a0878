// Package script runs an operator's program within limits.
package script
