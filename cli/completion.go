package cli

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// The scripts ask the program itself what may follow, so they are never out of date. The library adds what each command
// does if the variable 0 is zsh.
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
		words_=(${(f)"$(env 0=zsh ${words[1,CURRENT-1]} - --generate-bash-completion 2>/dev/null)"})
	else
		words_=(${(f)"$(env 0=zsh ${words[1,CURRENT-1]} --generate-bash-completion 2>/dev/null)"})
	fi
	if (( ${#words_} )); then
		_describe 'appliance' words_
	else
		_files
	fi
}
compdef _appliance appliance
`

const fishCompletion = `# appliance completion for fish: appliance completion fish | source
function __appliance_complete
	set -l words (commandline -opc)
	set -l current (commandline -ct)
	set -l found
	if string match -q -- '-*' $current
		set found ($words - --generate-bash-completion 2>/dev/null)
	else
		set found (env 0=zsh $words --generate-bash-completion 2>/dev/null)
	end
	if set -q found[1]
		string replace ':' \t -- $found
	else
		__fish_complete_path $current
	end
end
complete -c appliance -f -a '(__appliance_complete)'
`

func completionCommand() *cli.Command {
	scripts := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	return &cli.Command{
		Name:         "completion",
		Usage:        "print what makes a shell complete commands and flags: source <(appliance completion bash)",
		ArgsUsage:    "bash|zsh|fish",
		OnUsageError: usageError,
		BashComplete: func(c *cli.Context) { fmt.Fprintln(c.App.Writer, "bash\nzsh\nfish") },
		Action: func(c *cli.Context) error {
			script, ok := scripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return usagef("name your shell: bash, zsh or fish")
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}
