// Package proof tries a load balancer as a client on the link would, and judges what comes back.
package proof
