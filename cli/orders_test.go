package cli

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestListBackends lists a server that is a name without an address, and one that has one.
func TestListBackends(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"loadBalancers": [{"name": "db", "backends": [{"name": "gone.example.org:5432", "address": "",
			"state": "down"}, {"name": "a", "address": "192.0.2.21:5432", "state": "up", "weight": 1}]}]}`))
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	var out strings.Builder
	if code := Run(t.Context(), Build{}, []string{"appliance", "backends", "list", "--socket", socket}, &out, &out); code != 0 {
		t.Fatalf("exit code %d: %s", code, &out)
	}
	want := "BACKEND                   ADDRESS          WEIGHT  STATE  ORDER\n" +
		"db/gone.example.org:5432  -                0       down   \n" +
		"db/a                      192.0.2.21:5432  1       up     \n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
