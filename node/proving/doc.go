// Package proving has the nodes of a group try each other as clients would.
package proving
