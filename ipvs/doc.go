// Package ipvs is the data plane in which the kernel's IP Virtual Server spreads connections over backends.
//
// Apply reads what the kernel has (kernel.go), translates what is wanted (translate.go), and performs the operations
// that lead from the one to the other (diff.go). Before that it sets what IPVS needs of the host: kernel parameters
// (sysctl.go) and, through interfaces, rules of the packet filter. usable.go tries all of it without leaving a trace.
package ipvs
