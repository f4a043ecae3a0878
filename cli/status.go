package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"appliance/status"
	"appliance/status/client"
	"appliance/status/journal"
	"appliance/status/terminal"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show holder, peers, virtual addresses, load balancers and backends",
		Flags: socketFlags(
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.BoolFlag{Name: "why", Usage: "say why each load balancer has its data plane, and not a faster one"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it live, until Ctrl-C"},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			server := client.New(socketPath(c))
			show := func(w io.Writer, colour bool) error {
				snapshot, err := server.Snapshot(c.Context)
				if err != nil {
					return err
				}
				if c.Bool("json") {
					enc := json.NewEncoder(w)
					enc.SetIndent("", "  ")
					return enc.Encode(snapshot)
				}
				return terminal.Text(w, snapshot, colour, c.Bool("why"))
			}
			if c.Bool("watch") {
				return repeat(c.Context, c.App.Writer, time.Second, show)
			}
			colour, _ := screen(c.App.Writer)
			return show(c.App.Writer, colour)
		},
	}
}

func healthCommand() *cli.Command {
	return &cli.Command{
		Name:  "health",
		Usage: "exit 0 if the running appliance is alive and would serve the virtual addresses; for probes",
		Flags: socketFlags(
			&cli.BoolFlag{Name: "live", Usage: "ask only whether the process answers"},
			&cli.BoolFlag{Name: "ready", Usage: "ask whether it would serve (the default)"},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			path := "/readyz"
			if c.Bool("live") {
				if c.Bool("ready") {
					return usagef("--live and --ready are two questions; ask one of them")
				}
				path = "/livez"
			}
			return ask(c, http.MethodGet, path)
		},
	}
}

func topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "show load balancers and backends live, the busiest first",
		Flags: socketFlags(
			&cli.DurationFlag{Name: "every", Usage: "time between two updates", Value: 2 * time.Second},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Duration("every") < 100*time.Millisecond {
				return usagef("--every is at least 100ms")
			}
			server := client.New(socketPath(c))
			var before status.Snapshot
			return repeat(c.Context, c.App.Writer, c.Duration("every"), func(w io.Writer, colour bool) error {
				now, err := server.Snapshot(c.Context)
				if err != nil {
					return err
				}
				defer func() { before = now }()
				return terminal.Top(w, before, now, colour)
			})
		},
	}
}

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "show what has happened, also before a crash",
		Flags: socketFlags(
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "print new events as they happen"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON, one event per line"},
			&cli.IntFlag{Name: "last", Aliases: []string{"n"}, Usage: "how many to begin with; 0: all", Value: 50},
			dataDirFlag(),
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Int("last") < 0 {
				return usagef("--last is a number of events, or 0 for all")
			}
			return events(c)
		},
	}
}

// events asks the running appliance, or reads the disk if none runs.
func events(c *cli.Context) error {
	server := client.New(socketPath(c))
	list, err := server.Events(c.Context)
	if err != nil {
		if !errors.Is(err, client.ErrNotRunning) || c.Bool("follow") {
			return err
		}
		running := err
		if list, err = journal.Read(dataDir(c)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; and %w", running, err)
		} else if err != nil {
			return err
		}
		fmt.Fprintf(c.App.ErrWriter, "no appliance runs; these are the events on disk, in %s\n", dataDir(c))
	}
	if n := c.Int("last"); n > 0 && len(list) > n {
		list = list[len(list)-n:]
	}
	colour, _ := screen(c.App.Writer)
	show := func(e status.Event) error {
		if c.Bool("json") {
			return json.NewEncoder(c.App.Writer).Encode(e)
		}
		return terminal.Event(c.App.Writer, e, colour)
	}
	since := uint64(0)
	for _, e := range list {
		if err := show(e); err != nil {
			return err
		}
		since = e.Seq
	}
	if !c.Bool("follow") {
		return nil
	}
	err = server.Follow(c.Context, since, show)
	if c.Context.Err() != nil {
		return nil // Ctrl-C is how this ends
	}
	return err
}

// terminal says whether w takes colours, and its height in rows; 0 if it is not a terminal.
func screen(w io.Writer) (colour bool, rows int) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false, 0
	}
	_, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		rows = 0
	}
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", rows
}

const (
	clearScreen = "\x1b[H\x1b[2J"
	altScreen   = "\x1b[?1049h\x1b[?25l"
	mainScreen  = "\x1b[?25h\x1b[?1049l"
)

// repeat draws again and again until ctx ends. On a terminal each picture replaces the one before, on the alternate
// screen; elsewhere the pictures follow each other.
func repeat(ctx context.Context, w io.Writer, every time.Duration, draw func(w io.Writer, colour bool) error) error {
	colour, rows := screen(w)
	if rows > 0 {
		fmt.Fprint(w, altScreen)
		defer fmt.Fprint(w, mainScreen)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var b strings.Builder
		err := draw(&b, colour)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how this ends
		}
		if err != nil && rows == 0 {
			return err
		}
		if err != nil { // it may be restarting: try again
			fmt.Fprintf(&b, "%v\n", err)
		}
		text := b.String()
		if rows > 0 {
			text = clearScreen + cut(text, rows-1)
		} else {
			text += "\n"
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// cut returns the first lines of text.
func cut(text string, lines int) string {
	for i := range text {
		if text[i] == '\n' {
			if lines--; lines <= 0 {
				return text[:i]
			}
		}
	}
	return text
}
