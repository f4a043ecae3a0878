// Package web serves what an appliance is doing over HTTP, and nothing that changes anything.
package web
