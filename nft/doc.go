// Package nft holds the rules that the appliance puts into nf_tables, but for those of the data plane direct.
package nft
