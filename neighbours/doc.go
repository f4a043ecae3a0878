// Package neighbours knows the Ethernet links of this node and the MAC addresses on them, from the kernel's tables.
package neighbours
