// Package draft collects what the files of one machine say, whichever program they are for.
package draft
