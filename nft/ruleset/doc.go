// Package ruleset keeps tables of the kernel's nf_tables equal to what is wanted.
package ruleset
