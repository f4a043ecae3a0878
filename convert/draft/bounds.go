package draft

import (
	"time"
)

// MaxStatements is above any real configuration, and keeps what compares each
// with each from taking minutes.
const MaxStatements = 20_000

// MaxList is how many of anything our loader reads.
const MaxList = 1000

// Bounds of what can be said; the loader has the same.
const (
	MinInter   = 10 * time.Millisecond
	MaxInter   = time.Hour
	MaxConnect = 5 * time.Minute
	MaxQueue   = 24 * time.Hour
	MaxQuiet   = 365 * 24 * time.Hour
	MaxSlow    = time.Hour
	MaxFail    = 24 * time.Hour
	MinFail    = 100 * time.Millisecond
	MaxSticky  = 31 * 24 * time.Hour
	MaxCount   = 1000
	MaxConns   = 1_000_000
	MaxWeight  = 256
)

// More bounds, and what haproxy and nginx mean where they say nothing.
const (
	MinConnect         = time.Millisecond
	MinPersistence     = time.Second
	MinHello           = 10 * time.Millisecond
	MaxHello           = time.Minute
	DefaultPersistence = 30 * time.Minute
	CutsWatches        = time.Hour
)
