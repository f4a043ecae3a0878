// Package nginx reads the stream block of nginx.conf.
package nginx
