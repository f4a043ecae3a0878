// Command release makes everything that is published: static programs for each architecture, archives, packages, the
// container image, a bill of materials and checksums.
//
// It needs Go and git, and neither a daemon nor a network but for modules. The same commit gives the same bytes.
package main
