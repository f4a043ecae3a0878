// Package flood has the kernel drop the frames of machines that send a packet socket too many.
package flood
