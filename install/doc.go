// Package install puts the program on a machine as a systemd service, and takes it away again, step by step.
package install
