// Package hook tells the operator's programs what has happened.
package hook
