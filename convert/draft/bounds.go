package draft

import "time"

const (
	// MaxStatements is more than any real configuration has. It keeps what compares all statements with each other from
	// taking minutes.
	MaxStatements = 20_000
	// MaxList is the most entries of any list that our loader takes.
	MaxList = 1000
)

// The bounds of values, which are those of our loader.
const (
	MinInter       = 10 * time.Millisecond
	MaxInter       = time.Hour
	MinConnect     = time.Millisecond
	MaxConnect     = 5 * time.Minute
	MaxQueue       = 24 * time.Hour
	maxTTL         = 31 * 24 * time.Hour
	MaxQuiet       = 365 * 24 * time.Hour
	MaxSlow        = time.Hour
	MinFail        = 100 * time.Millisecond
	MaxFail        = 24 * time.Hour
	MinPersistence = time.Second
	MaxSticky      = 31 * 24 * time.Hour
	MinHello       = 10 * time.Millisecond
	MaxHello       = time.Minute
	MaxCount       = 1000
	MaxConns       = 1_000_000
	MaxWeight      = 256
)

// CutsWatches is the timeout below which quiet connections are cut that should stay, such as watches.
const CutsWatches = time.Hour
