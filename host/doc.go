// Package host is what the process asks of the host it runs on: priority, log output and news of changed files.
package host
