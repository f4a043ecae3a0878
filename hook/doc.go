// Package hook sends notices of events to the operator's programs and URLs.
package hook
