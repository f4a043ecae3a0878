// Package syntax splits configuration files of other programs into statements.
package syntax
