// Package doctor finds out what on a host would keep an appliance from working, and says what mends it.
//
// Nothing is changed on the host: the virtual addresses are asked for on the wire and never claimed, rules are tried in
// one transaction that removes them, and the file that measures the disk is removed.
package doctor
