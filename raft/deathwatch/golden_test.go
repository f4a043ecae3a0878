package deathwatch

import (
	"os"
	"strings"
	"testing"
)

// TestMessagesOfTheFirstVersion: what is said on a watch connection stays the same.
func TestMessagesOfTheFirstVersion(t *testing.T) {
	text, err := os.ReadFile("../testdata/v1/bytes.txt")
	if err != nil {
		t.Fatal(err)
	}
	if now := "watch " + string([]byte{msgLeads, msgSilent, msgGoodbye}); !strings.Contains(string(text), now+"\n") {
		t.Errorf("%q is not what the first version says", now)
	}
}
