// Package haproxy reads haproxy.cfg.
package haproxy
