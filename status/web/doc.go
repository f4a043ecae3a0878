// Package web serves what an appliance is doing over HTTP, and hands in the orders of users where they may give any.
package web
