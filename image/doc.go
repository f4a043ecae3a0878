// Package image packs the program into a container image, as an archive that containerd, podman and docker import.
//
// Neither a daemon nor a registry is needed, and the same binaries make the same bytes.
package image
