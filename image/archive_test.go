package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// files are an archive's, by name.
func files(t *testing.T, archive io.Reader) map[string][]byte {
	t.Helper()
	all := make(map[string][]byte)
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir {
			if all[h.Name], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Every descriptor points at a blob of that digest and size, down to the program, and the same input makes the same
// bytes.
func TestWrite(t *testing.T) {
	for name, binaries := range map[string][]Binary{
		"one": {{Arch: "amd64", Program: []byte("one")}},
		"some": {{Arch: "amd64", Program: []byte("one")}, {Arch: "arm", Variant: "v7", Program: []byte("two")},
			{Arch: "s390x", Program: []byte("one")}},
	} {
		t.Run(name, func(t *testing.T) {
			o := Archive{Name: "docker.io/library/appliance:v1", Version: "v1", Created: time.Unix(1e9, 500), Binaries: binaries}
			var first, second bytes.Buffer
			if err := errors.Join(Write(&first, o), Write(&second, o)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first.Bytes(), second.Bytes()) {
				t.Error("the bytes differ")
			}
			all := files(t, &first)
			read := func(d descriptor, into any) []byte {
				t.Helper()
				b := all["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
				if digest(b) != d.Digest || len(b) != d.Size {
					t.Fatalf("%+v points at %d bytes of %s", d, len(b), digest(b))
				}
				if into != nil {
					if err := json.Unmarshal(b, into); err != nil {
						t.Fatal(err)
					}
				}
				return b
			}
			var top index
			if err := json.Unmarshal(all["index.json"], &top); err != nil || len(top.Manifests) != 1 {
				t.Fatalf("%v %s", err, all["index.json"])
			}
			if got := top.Manifests[0].Annotations[fullName]; got != o.Name {
				t.Errorf("the name is %q", got)
			}
			manifests := top.Manifests
			if len(binaries) > 1 {
				var inner index
				read(top.Manifests[0], &inner)
				manifests = inner.Manifests
			}
			if _, legacy := all["manifest.json"]; legacy != (len(binaries) == 1) {
				t.Errorf("manifest.json: %t", legacy)
			}
			for i, d := range manifests {
				var m manifest
				var c config
				read(d, &m)
				read(m.Config, &c)
				z, err := gzip.NewReader(bytes.NewReader(read(m.Layers[0], nil)))
				if err != nil {
					t.Fatal(err)
				}
				plain, err := io.ReadAll(z)
				if err != nil {
					t.Fatal(err)
				}
				if c.RootFS.DiffIDs[0] != digest(plain) || c.Architecture != binaries[i].Arch ||
					d.Platform.Variant != binaries[i].Variant {
					t.Errorf("%+v", c)
				}
				if got := files(t, bytes.NewReader(plain))["appliance"]; !bytes.Equal(got, binaries[i].Program) {
					t.Errorf("the program is %q", got)
				}
			}
		})
	}
	if err := Write(io.Discard, Archive{Name: "appliance:v1"}); err == nil {
		t.Error("an image without a binary was written")
	}
}
