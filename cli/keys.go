package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/term"

	"appliance/configs"
	"appliance/raft/auth"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:         "keygen",
		Usage:        "print a new group key; every peer gets the same, in a file of mode 0600",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "worker", Usage: "print the key that lets workers follow the group and do nothing else"},
			&cli.StringFlag{Name: "group-key", Usage: "the group key that --worker is made from", Value: configs.DefaultKeyFile},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Bool("worker") {
				return printWorkerKey(c)
			}
			if c.IsSet("group-key") {
				return usagef("--group-key is what --worker is made from; a new group key needs none")
			}
			return printSecret(c, auth.GenerateKey().Text())
		},
	}
}

func printWorkerKey(c *cli.Context) error {
	key, err := auth.LoadKey(c.String("group-key"))
	if err != nil {
		return err
	}
	worker, err := key.Worker()
	if err != nil {
		return err
	}
	return printSecret(c, worker.Text())
}

// printSecret prints a secret. If the output is a file, only its owner may read it from then on: a key that others can
// read is refused by start.
func printSecret(c *cli.Context, text string) error {
	if f, ok := c.App.Writer.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
			if err := f.Chmod(0o600); err != nil {
				return fmt.Errorf("keep others from reading the key: %w; write it to a file of your own", err)
			}
		}
	}
	_, err := fmt.Fprintln(c.App.Writer, text)
	return err
}

func passwdCommand() *cli.Command {
	return &cli.Command{
		Name:         "passwd",
		Usage:        "print the hash of a password, for admin.users; the password is prompted for, or read from stdin",
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
				return fmt.Errorf("the password is longer than the 72 bytes that bcrypt reads; choose a shorter one")
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s\n", hash)
			return err
		},
	}
}

// readPassword reads a line without echo.
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
