package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// An Archive says what is packed.
type Archive struct {
	// Name is the image's full name with its tag, such as docker.io/library/appliance:v1.0.0.
	Name string
	// Version and Revision are labels; Revision may be empty.
	Version, Revision string
	// Created is the time of everything in the archive, in whole seconds.
	Created  time.Time
	Binaries []Binary
}

// A Binary is the program for one platform.
type Binary struct {
	Arch    string // as GOARCH names it
	Variant string // of arm: v7
	Program []byte
}

// Media types and annotations of the OCI image specification 1.1, and containerd's own for an image's full name.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
	refName      = "org.opencontainers.image.ref.name"
	fullName     = "io.containerd.image.name"
)

// descriptor points at a blob, image-spec descriptor.md.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// index is image-spec image-index.md.
type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

// manifest is image-spec manifest.md.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

// config is image-spec config.md.
type config struct {
	Created time.Time `json:"created"`
	platform
	Config struct {
		Entrypoint []string          `json:"Entrypoint"`
		Cmd        []string          `json:"Cmd"`
		WorkingDir string            `json:"WorkingDir"`
		Labels     map[string]string `json:"Labels"`
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// Write writes the archive: an OCI image layout as a tar file. With a single binary it has docker's own list too, for
// docker before 25, which knows no layouts.
func Write(w io.Writer, o Archive) error {
	if len(o.Binaries) == 0 || !strings.Contains(o.Name, ":") {
		return fmt.Errorf("image: name an image with its tag, and at least one binary")
	}
	o.Created = o.Created.UTC().Truncate(time.Second)
	a := &archive{tar: tar.NewWriter(w), at: o.Created, seen: make(map[string]bool)}
	a.dir("blobs")
	a.dir("blobs/sha256")
	var manifests []descriptor
	var docker []map[string]any
	for _, b := range o.Binaries {
		d, legacy, err := a.binary(o, b)
		if err != nil {
			return err
		}
		manifests, docker = append(manifests, d), append(docker, legacy)
	}
	top := manifests[0]
	if len(manifests) > 1 {
		top = a.json(typeIndex, index{2, typeIndex, manifests})
	}
	top.Annotations = map[string]string{refName: o.Name, fullName: o.Name}
	a.document("index.json", index{2, typeIndex, []descriptor{top}})
	if len(docker) == 1 {
		a.document("manifest.json", docker)
	}
	a.document("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"})
	if a.err != nil {
		return fmt.Errorf("image: %w", a.err)
	}
	return a.tar.Close()
}

// archive writes blobs and remembers the first error.
type archive struct {
	tar  *tar.Writer
	at   time.Time
	seen map[string]bool
	err  error
}

// binary adds one platform's layer, configuration and manifest.
func (a *archive) binary(o Archive, b Binary) (descriptor, map[string]any, error) {
	layer, diff, err := pack(b.Program, o.Created)
	if err != nil {
		return descriptor{}, nil, err
	}
	on := platform{b.Arch, "linux", b.Variant}
	c := config{Created: o.Created, platform: on, History: []history{{o.Created, "appliance image"}}}
	c.Config.Entrypoint, c.Config.Cmd, c.Config.WorkingDir = []string{"/appliance"}, []string{"start"}, "/"
	c.Config.Labels = map[string]string{
		"org.opencontainers.image.title":    "appliance",
		"org.opencontainers.image.version":  o.Version,
		"org.opencontainers.image.licenses": "Apache-2.0",
	}
	if o.Revision != "" {
		c.Config.Labels["org.opencontainers.image.revision"] = o.Revision
	}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{diff}
	m := manifest{2, typeManifest, a.json(typeConfig, c), []descriptor{a.blob(typeLayer, layer)}}
	d := a.json(typeManifest, m)
	d.Platform = &on
	path := func(d descriptor) string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }
	return d, map[string]any{
		"Config": path(m.Config), "RepoTags": []string{o.Name}, "Layers": []string{path(m.Layers[0])},
	}, a.err
}

// pack makes the only layer: the program. It returns the compressed layer and the digest of the uncompressed one.
func pack(program []byte, at time.Time) (layer []byte, diff string, err error) {
	var plain, packed bytes.Buffer
	t := tar.NewWriter(&plain)
	// 0555: nothing in the image is to be written, whoever runs it.
	h := tar.Header{Name: "appliance", Mode: 0o555, Size: int64(len(program)), ModTime: at, Format: tar.FormatUSTAR}
	if err := t.WriteHeader(&h); err != nil {
		return nil, "", err
	}
	if _, err := t.Write(program); err != nil {
		return nil, "", err
	}
	if err := t.Close(); err != nil {
		return nil, "", err
	}
	z := gzip.NewWriter(&packed) // without a time of its own
	if _, err := z.Write(plain.Bytes()); err != nil {
		return nil, "", err
	}
	if err := z.Close(); err != nil {
		return nil, "", err
	}
	return packed.Bytes(), digest(plain.Bytes()), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// json adds a document as a blob.
func (a *archive) json(mediaType string, v any) descriptor {
	b, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	return a.blob(mediaType, b)
}

// blob adds content under its digest, once.
func (a *archive) blob(mediaType string, b []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(b), Size: len(b)}
	if !a.seen[d.Digest] {
		a.seen[d.Digest] = true
		a.file("blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"), b)
	}
	return d
}

func (a *archive) document(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil && a.err == nil {
		a.err = err
	}
	a.file(name, b)
}

func (a *archive) dir(name string) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{
			Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: a.at, Format: tar.FormatUSTAR,
		})
	}
}

func (a *archive) file(name string, b []byte) {
	if a.err != nil {
		return
	}
	a.err = a.tar.WriteHeader(&tar.Header{
		Name: name, Mode: 0o644, Size: int64(len(b)), ModTime: a.at, Format: tar.FormatUSTAR,
	})
	if a.err == nil {
		_, a.err = a.tar.Write(b)
	}
}
