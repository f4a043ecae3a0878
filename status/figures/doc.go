// Package figures writes durations, rates and sizes the way a person reads them.
package figures
