// Package nft holds everything that the appliance puts into the kernel's nf_tables.
package nft
