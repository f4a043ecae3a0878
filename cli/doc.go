// Package cli is the command line of the appliance.
package cli
