// Package endpoints tells the users of a configuration which addresses they talk to, as a pure function of it.
package endpoints
