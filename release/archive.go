package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
)

// archive writes a tar.gz with everything below one directory.
func (r *release) archive(base string, files []file) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, f := range files {
		h := tar.Header{
			Name: base + "/" + f.path, Mode: int64(f.mode), Size: int64(len(f.data)), ModTime: r.at,
			Uname: "root", Gname: "root", Format: tar.FormatPAX,
		}
		if err := t.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return r.write(base+".tar.gz", b.Bytes())
}
