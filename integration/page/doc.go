// Package page looks at the status page with a real browser.
package page
