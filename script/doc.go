// Package script runs an operator's program within limits of time, environment and output.
package script
