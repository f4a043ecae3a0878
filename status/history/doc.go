// Package history samples what the load balancers do and keeps the last 15 minutes.
package history
