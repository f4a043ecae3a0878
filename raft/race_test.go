//go:build race

package raft

const raceDetector = true
