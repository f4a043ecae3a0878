// Package keyfile refuses files with secrets that somebody else can read or exchange.
package keyfile
