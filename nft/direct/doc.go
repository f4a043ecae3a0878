// Package direct is the data plane that hands a client's packets to the chosen node unchanged, by its MAC address.
package direct
