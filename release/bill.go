package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"time"
)

// A bill of materials in the form of CycloneDX 1.6 (ECMA-424), as far as it is needed.
type bom struct {
	Format      string      `json:"bomFormat"`
	Spec        string      `json:"specVersion"`
	Version     int         `json:"version"`
	Metadata    metadata    `json:"metadata"`
	Components  []component `json:"components"`
	Dependences []depends   `json:"dependencies"`
}

type metadata struct {
	Timestamp time.Time `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	PURL     string    `json:"purl,omitempty"`
	Hashes   []hash    `json:"hashes,omitempty"`
	Licenses []license `json:"licenses,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

type depends struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

// bill writes what a program was made of, from what the program itself says.
func (r *release) bill(a arch, program []byte, name string) error {
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("read the modules of the program for %s: %w", a.name, err)
	}
	data, err := json.MarshalIndent(billOf(info, r.version.word, program, r.at), "", "  ")
	if err != nil {
		return err
	}
	return r.write(name, append(data, '\n'))
}

func billOf(info *debug.BuildInfo, version string, program []byte, at time.Time) bom {
	own := component{
		Type: "application", Ref: "appliance@" + version, Name: "appliance", Version: version,
		Hashes: []hash{{"SHA-256", fmt.Sprintf("%x", sha256.Sum256(program))}}, Licenses: make([]license, 1),
	}
	own.Licenses[0].License.ID = "Apache-2.0"
	b := bom{"CycloneDX", "1.6", 1, metadata{at, own}, nil, nil}
	uses := depends{Ref: own.Ref}
	add := func(path, version string) {
		ref := "pkg:golang/" + path + "@" + version
		b.Components = append(b.Components, component{Type: "library", Ref: ref, Name: path, Version: version, PURL: ref})
		uses.On = append(uses.On, ref)
	}
	add("std", info.GoVersion)
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		add(m.Path, m.Version)
	}
	b.Dependences = []depends{uses}
	return b
}
