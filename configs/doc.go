// Package configs reads what the operator wants from flags, environment and file.
package configs
