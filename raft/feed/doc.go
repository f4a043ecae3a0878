// Package feed brings what the peers publish to workers, which are outside the group.
package feed
