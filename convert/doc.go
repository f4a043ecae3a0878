// Package convert turns the configurations of other load balancers into ours, text into text.
package convert
