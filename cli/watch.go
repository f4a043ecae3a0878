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
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/term"

	"appliance/configs"
	"appliance/status"
)

// terminal is what w is to a person: whether it takes colours, and its height;
// zero where it is no terminal.
func terminal(w io.Writer) (colour bool, rows int) {
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

// repeat draws again and again until ctx ends. On a terminal each picture takes
// the place of the one before, on a screen of its own; elsewhere they follow each other.
func repeat(ctx context.Context, w io.Writer, every time.Duration, draw func(w io.Writer, colour bool) error) error {
	colour, rows := terminal(w)
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
		if err != nil { // it may be restarting: go on looking
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

// cut keeps the first lines of text.
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

func topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "show load balancers and backends live, the busiest first",
		Flags: socketFlags(
			&cli.DurationFlag{Name: "every", Usage: "time between two pictures", Value: 2 * time.Second},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Duration("every") < 100*time.Millisecond {
				return errUsage{fmt.Errorf("--every is at least 100ms")}
			}
			client := status.NewClient(socketPath(c))
			var before status.Snapshot
			return repeat(c.Context, c.App.Writer, c.Duration("every"), func(w io.Writer, colour bool) error {
				now, err := client.Snapshot(c.Context)
				if err != nil {
					return err
				}
				defer func() { before = now }()
				return status.Top(w, before, now, colour)
			})
		},
	}
}

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "show what has happened, also before a crash",
		Flags: socketFlags(
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on with what happens from now on"},
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
				return errUsage{fmt.Errorf("--last is a number of events, or 0 for all")}
			}
			return events(c)
		},
	}
}

// events asks the running appliance, and reads the disk where none runs.
func events(c *cli.Context) error {
	client := status.NewClient(socketPath(c))
	list, err := client.Events(c.Context)
	if err != nil {
		if !errors.Is(err, status.ErrNotRunning) || c.Bool("follow") {
			return err
		}
		running := err
		if list, err = status.ReadJournal(dataDir(c)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; and %w", running, err)
		} else if err != nil {
			return err
		}
		fmt.Fprintf(c.App.ErrWriter, "no appliance runs; these are the events on disk, in %s\n", dataDir(c))
	}
	if n := c.Int("last"); n > 0 && len(list) > n {
		list = list[len(list)-n:]
	}
	colour, _ := terminal(c.App.Writer)
	show := func(e status.Event) error {
		if c.Bool("json") {
			return json.NewEncoder(c.App.Writer).Encode(e)
		}
		return status.EventText(c.App.Writer, e, colour)
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
	err = client.Follow(c.Context, since, show)
	if c.Context.Err() != nil {
		return nil // Ctrl-C is how this ends
	}
	return err
}

func logLevelCommand() *cli.Command {
	return &cli.Command{
		Name:         "log-level",
		Usage:        "show or set how much the running appliance logs, until it ends",
		ArgsUsage:    "[debug|info|warn|error]",
		Flags:        socketFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			method, path := http.MethodGet, "/log-level"
			switch c.NArg() {
			case 0:
			case 1:
				method, path = http.MethodPost, path+"?level="+c.Args().First()
				if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Args().First()) {
					return errUsage{fmt.Errorf("there is no level %q; write debug, info, warn or error", c.Args().First())}
				}
			default:
				return errUsage{fmt.Errorf("name one level, or none to see which is in force")}
			}
			body, err := status.NewClient(socketPath(c)).Do(c.Context, method, path)
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(body)
			return err
		},
	}
}

func passwdCommand() *cli.Command {
	return &cli.Command{
		Name:         "passwd",
		Usage:        "print the hash of a password, for admin.users; it is asked for, or read from stdin",
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			password, err := readPassword(os.Stdin, c.App.ErrWriter)
			if err != nil {
				return err
			}
			hash, err := bcrypt.GenerateFromPassword(password, bcrypt.DefaultCost)
			if errors.Is(err, bcrypt.ErrPasswordTooLong) {
				return fmt.Errorf("the password is longer than 72 bytes, of which bcrypt takes no more; choose a shorter one")
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s\n", hash)
			return err
		},
	}
}

// readPassword reads a line, without showing it where it is typed.
func readPassword(in *os.File, ask io.Writer) ([]byte, error) {
	var password []byte
	var err error
	if term.IsTerminal(int(in.Fd())) {
		fmt.Fprint(ask, "Password: ")
		password, err = term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(ask)
	} else {
		password, err = io.ReadAll(io.LimitReader(in, 4096))
		password = []byte(strings.TrimRight(string(password), "\r\n"))
	}
	if err != nil {
		return nil, err
	}
	if len(password) < 8 {
		return nil, errors.New("a password has at least 8 characters")
	}
	return password, nil
}

// settingOf is the value of one setting for commands that need nothing else of the
// configuration: of flag, environment or default.
func settingOf(c *cli.Context, name string) string {
	for _, s := range configs.Settings() {
		if s.Flag != name {
			continue
		}
		if c.IsSet(name) {
			return c.String(name)
		}
		if v := os.Getenv(s.Env()); v != "" {
			return v
		}
		return s.Default
	}
	panic("the list of settings has no " + name)
}

func dataDir(c *cli.Context) string { return settingOf(c, "data-dir") }

func dataDirFlag() cli.Flag {
	for _, f := range settingFlags() {
		if f.Names()[0] == "data-dir" {
			return f
		}
	}
	panic("the list of settings has no data-dir")
}
