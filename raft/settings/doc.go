// Package settings is the state that the group replicates: named texts.
package settings
