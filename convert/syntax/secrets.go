package syntax

import (
	"regexp"
	"strings"
)

// hidden is what stands in the place of a secret.
const hidden = "****"

// secretName matches names of things whose value is a secret.
const secretName = `[A-Za-z0-9_-]*(?:pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|[_-]key|` +
	`credentials?|cookie|bearer|auth(?:entication|orization)?)[A-Za-z0-9_-]*`

// secrets match what a secret follows, or is within; $1 is kept, and $2 as well.
var secrets = []*regexp.Regexp{
	// Words whose every value is a secret.
	regexp.MustCompile(`(?is)(\b(?:auth_pass|auth|authorization|password|insecure-password|packetapikey|bearer)` +
		`[ :=]+)\S.*()`),
	regexp.MustCompile(`(?is)((?:^|\s)(?:setenv|presetenv)\s+\S+\s+)\S.*()`),
	regexp.MustCompile(`(?is)(\btcp-check\s+send\S*\s+)\S.*()`),
	regexp.MustCompile(`(?is)(\bhttp-check\s+send\b.*?\sbody(?:-file|-lf)?\s+)\S.*()`),
	regexp.MustCompile(`(?is)(\buser\s+\S+\s+(?:insecure-)?password\s+)\S.*()`),
	regexp.MustCompile(`(?i)([?&](?:key|sig|signature|sid|session(?:id)?|code)=)[^&\s]+()`),
	// NAME=value, NAME: value, NAME value and --name value.
	regexp.MustCompile(`(?is)((?:^|[\s"'$?&{;-])` + secretName + `["']?\s*[=:]\s*)\S.*()`),
	regexp.MustCompile(`(?is)((?:^|[\s"'])(?:--?|hdr\s+|set-header\s+|add-header\s+|X-)` + secretName + `\s+)\S.*()`),
	// Options of the clients that scripts call.
	regexp.MustCompile(`(?s)((?:redis-cli|valkey-cli|keydb-cli)\b.*?\s(?:-a|--pass|--user)[ =]*)\S.*()`),
	regexp.MustCompile(`(?s)((?:curl|wget)\b.*?\s(?:-u|--user|-U|--proxy-user|-H|--header|-b|-E|--cert|` +
		`--oauth2-bearer|-d|--data\S*)[ =]*)\S.*()`),
	regexp.MustCompile(`(?s)((?:ldap|mysql|mariadb|mysqladmin|mysqlcheck|mariadb-admin|mysqlsh|mongo|mongosh|sshpass|` +
		`rabbitmqadmin|psql|isql|sqlcmd|snmp\w+|ldap\w+|ipmitool|cqlsh|clickhouse\S*)\b.*?` +
		`\s(?:-p|-w|-P|-c|-a|-U|-A|-X|-I)[ =]?)\S.*()`),
	regexp.MustCompile(`(?s)(\bclustercheck\S*\s+\S+\s+)\S.*()`),               // its user and password
	regexp.MustCompile(`(?s)((?:^|\s)-[uU][ =]?[^\s:%/-][^\s:%/]*[:%])\S.*()`), // -u user:password, -U user%password
	// scheme://user:password@host
	regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]+(@)`),
}

// Masked is text without the secrets that must not be copied to another place.
func Masked(text string) string {
	for _, s := range secrets {
		text = s.ReplaceAllString(text, "${1}"+hidden+"${2}")
	}
	text = passwords.ReplaceAllStringFunc(text, func(option string) string {
		m := passwords.FindStringSubmatch(option)
		isKnown := strings.HasPrefix(strings.ToLower(strings.TrimSpace(m[1])), "-p")
		if notPassword.MatchString(m[2]) || !isKnown && !looksChosen(m[2]) {
			return option
		}
		return m[1] + hidden
	})
	if !command.MatchString(text) {
		return text
	}
	words := strings.Split(text, " ")
	for i, w := range words {
		if i > 1 && len(w) > 5 && looksChosen(w) && !nameAndNumber.MatchString(w) {
			words[i] = hidden
		}
	}
	return strings.Join(words, " ")
}

// command matches statements that name a program and its arguments.
var command = regexp.MustCompile(`^(?:misc_path|script|notify\w*|quorum_(?:up|down)|external-check|/)`)

// nameAndNumber matches names such as Node12.
var nameAndNumber = regexp.MustCompile(`^[A-Za-z]+[0-9]*$`)

// passwords match what many programs, also those of no known name, take as a password: -pVALUE or -p VALUE. What is no
// password there are numbers and paths, protocols, and options that are longer than -p.
var (
	passwords   = regexp.MustCompile(`((?:^|\s)-(?:pw|[A-Za-z])[ =]?)(\S+)`)
	notPassword = regexp.MustCompile(`^(?:[0-9:,.-]+|[-/.].*|tcp|udp|icmp\w*|vrrp|all|orts?|aths?|refix|ing|id|idfile|` +
		`roto|rotocol|roxy|rint|rofile|olicy|oll|riority|rocess|rogram|ackage|arallel|arams?|arent|attern|eers?|eriod|` +
		`ersist|lain|lugin|ool|rimary|rogress|artition|[oa]rts?=.*)$`)
)

// looksChosen reports whether a word looks like a password: letters of both sizes and digits, or letters and a sign
// that names and addresses do not have.
func looksChosen(word string) bool {
	has := func(chars string) bool { return strings.ContainsAny(word, chars) }
	lower, upper := has("abcdefghijklmnopqrstuvwxyz"), has("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	return !has("./:,@") && (lower && upper && has("0123456789") || (lower || upper) && has("!$#^&*?~"))
}

// HasSecret reports whether Masked would hide some of text.
func HasSecret(text string) bool { return Masked(text) != text }

var secretNames = regexp.MustCompile(`(?is)^(?:` + secretName + `|.*[_-]?key)$`)

// IsSecretName reports whether the value of the thing of that name, such as a header's, is a secret.
func IsSecretName(name string) bool { return secretNames.MatchString(strings.TrimSpace(name)) }
