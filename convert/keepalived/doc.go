// Package keepalived reads keepalived.conf.
package keepalived
