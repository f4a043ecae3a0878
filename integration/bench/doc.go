// Command bench measures the appliance beside its peers, in turns on the same
// machine, so that noise hits all alike.
package main
