package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself what may follow, so they never fall behind
// it.
const bashCompletion = `# appliance completion for bash: source <(appliance completion bash)
_appliance() {
	local current words
	current=${COMP_WORDS[COMP_CWORD]}
	if [[ $current == -* ]]; then
		words=$("${COMP_WORDS[@]:0:COMP_CWORD}" - --generate-bash-completion 2>/dev/null)
	else
		words=$("${COMP_WORDS[@]:0:COMP_CWORD}" --generate-bash-completion 2>/dev/null)
	fi
	COMPREPLY=($(compgen -W "$words" -- "$current"))
	[[ ${#COMPREPLY[@]} -gt 0 ]] || COMPREPLY=($(compgen -f -- "$current"))
}
complete -o filenames -F _appliance appliance
`

const zshCompletion = `#compdef appliance
# appliance completion for zsh: source <(appliance completion zsh)
_appliance() {
	local -a words_
	local current=${words[CURRENT]}
	if [[ $current == -* ]]; then
		words_=(${(f)"$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[1,CURRENT-1]} - --generate-bash-completion 2>/dev/null)"})
	else
		words_=(${(f)"$(_CLI_ZSH_AUTOCOMPLETE_HACK=1 ${words[1,CURRENT-1]} --generate-bash-completion 2>/dev/null)"})
	fi
	if (( ${#words_} )); then
		_describe 'appliance' words_
	else
		_files
	fi
}
compdef _appliance appliance
`

func completionCommand() *cli.Command {
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion}
	return &cli.Command{
		Name:         "completion",
		Usage:        "print what makes a shell complete commands and flags: source <(appliance completion bash)",
		ArgsUsage:    "bash|zsh",
		OnUsageError: usageError,
		BashComplete: func(c *cli.Context) { fmt.Fprintln(c.App.Writer, "bash\nzsh") },
		Action: func(c *cli.Context) error {
			script, ok := scripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return errUsage{fmt.Errorf("name your shell: bash or zsh")}
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}
