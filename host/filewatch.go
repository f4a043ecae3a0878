package host

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A fileFollower notices when a file becomes another one: written in place, renamed over, or behind a symbolic link
// that is swapped, as Kubernetes does with a ConfigMap.
type fileFollower struct {
	path string
	log  *slog.Logger
}

// FollowFile sends on changed, which has room for one value, each time the file at path may differ from the last
// look, until ctx ends. The first look counts too: what the caller has read before may be old.
func FollowFile(ctx context.Context, path string, log *slog.Logger, changed chan<- struct{}) error {
	return fileFollower{path, log}.run(ctx, changed)
}

const (
	// An editor may write a file in several steps; the file is read once it has been quiet for this long.
	fileQuiet = 300 * time.Millisecond
	// Some file systems send no events, and a file that is mounted alone stays the old one for ever. Looking costs
	// nothing.
	filePoll = 10 * time.Second
)

func (w fileFollower) run(ctx context.Context, changed chan<- struct{}) error {
	var events <-chan fsnotify.Event
	var errs <-chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("a changed configuration is noticed after seconds instead of at once", "reason", err)
	} else {
		defer watcher.Close()
		events, errs = watcher.Events, watcher.Errors
	}
	poll := time.NewTicker(filePoll)
	defer poll.Stop()
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	var last fileState
	gone := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			quiet.Reset(fileQuiet)
			continue
		case <-errs: // events were lost; the next look finds out
			continue
		case <-quiet.C:
		case <-poll.C:
		}
		if watcher != nil {
			w.follow(watcher)
		}
		now, err := stateOf(w.path)
		if err != nil {
			if !gone && errors.Is(err, fs.ErrNotExist) {
				w.log.Warn("the configuration file is gone; what is in force stays", "file", w.path)
			}
			gone = true
			continue
		}
		gone = false
		if last.same(now) {
			continue
		}
		last = now
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// follow watches the directories of the file and of all links on the way to it.
// A directory is watched, not the file: a rename brings another file.
func (w fileFollower) follow(watcher *fsnotify.Watcher) {
	want := make(map[string]bool)
	at := w.path
	for range 40 { // as many links as the kernel follows
		want[filepath.Dir(at)] = true
		to, err := os.Readlink(at)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(at), to)
		}
		at = to
	}
	if real, err := filepath.EvalSymlinks(w.path); err == nil {
		want[filepath.Dir(real)] = true
	}
	for _, dir := range watcher.WatchList() {
		if !want[dir] {
			_ = watcher.Remove(dir) // it may be gone already
		}
	}
	for dir := range want {
		_ = watcher.Add(dir) // else the next look finds out
	}
}

// A fileState tells one state of a file from the next. The content is not
// compared: whoever reloads may have read another one in between.
type fileState struct {
	info  fs.FileInfo
	mtime time.Time
	size  int64
}

func stateOf(path string) (fileState, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}, err
	}
	return fileState{info, info.ModTime(), info.Size()}, nil
}

func (s fileState) same(o fileState) bool {
	return s.info != nil && s.mtime.Equal(o.mtime) && s.size == o.size && os.SameFile(s.info, o.info)
}
