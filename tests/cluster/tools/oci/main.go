// Command oci writes an image as an OCI archive, from layers that are tar files already, without a daemon:
//
//	oci --name registry/repository:tag --layer layer.tar [--layer …] --config config.json --out archive.tar
//	oci --validate folder
//
// config.json is the `config` object of an OCI image (User, Env, Entrypoint, Labels …), `-` reads it from standard input.
// The same arguments and files give the same bytes. The digest of the manifest is printed. `--validate` takes an unpacked
// archive, compares everything in it with its digests, and prints the digest too.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

type options struct {
	name        string
	layers      list
	annotations list
	config      string
	out         string
	platform    string
	created     int64
	gzip        bool
	validate    string
}

type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func main() {
	var o options
	flag.StringVar(&o.name, "name", "", "name of the image, with registry and tag")
	flag.Var(&o.layers, "layer", "a layer, as a tar file that is not compressed; repeat it from the bottom to the top")
	flag.Var(&o.annotations, "annotation", "annotation of the manifest, as key=value; may be repeated")
	flag.StringVar(&o.config, "config", "", "file with the image's `config` object; - is standard input")
	flag.StringVar(&o.out, "out", "", "archive to write")
	flag.StringVar(&o.platform, "platform", "linux/"+runtime.GOARCH, "operating system and architecture")
	flag.Int64Var(&o.created, "created", 0, "when the image was made, in seconds since 1970")
	flag.BoolVar(&o.gzip, "gzip", false, "compress the layers")
	flag.StringVar(&o.validate, "validate", "", "folder of an unpacked archive to check; nothing is written")
	flag.Parse()
	digest, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "oci:", err)
		os.Exit(1)
	}
	fmt.Println(digest)
}

func run(o options) (v1.Hash, error) {
	if flag.NArg() > 0 {
		return v1.Hash{}, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if o.validate != "" {
		return check(o.validate)
	}
	for flag, value := range map[string]string{"--name": o.name, "--config": o.config, "--out": o.out} {
		if value == "" {
			return v1.Hash{}, fmt.Errorf("%s is missing; see oci --help", flag)
		}
	}
	tag, err := name.NewTag(o.name, name.StrictValidation)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("%q is not a name such as registry.example/repository:tag: %w", o.name, err)
	}
	image, err := build(o)
	if err != nil {
		return v1.Hash{}, err
	}
	// Whoever waits for the archive sees either nothing or all of it.
	partial := o.out + ".partial"
	defer os.Remove(partial)
	if err := write(image, tag, o, partial); err != nil {
		return v1.Hash{}, err
	}
	if err := os.Rename(partial, o.out); err != nil {
		return v1.Hash{}, err
	}
	return image.Digest()
}

func build(o options) (v1.Image, error) {
	config, err := readConfig(o.config)
	if err != nil {
		return nil, err
	}
	platform, err := v1.ParsePlatform(o.platform)
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: time.Unix(o.created, 0).UTC()}
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	image = mutate.ConfigMediaType(image, types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: platform.Architecture,
		OS:           platform.OS,
		Variant:      platform.Variant,
		Created:      created,
		Config:       config,
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	})
	if err != nil {
		return nil, err
	}
	for _, file := range o.layers {
		layer, err := openLayer(file, o.gzip)
		if err != nil {
			return nil, err
		}
		image, err = mutate.Append(image, mutate.Addendum{
			Layer:   layer,
			History: v1.History{Created: created, CreatedBy: path.Base(file)},
		})
		if err != nil {
			return nil, err
		}
	}
	annotations, err := pairs(o.annotations)
	if err != nil || len(annotations) == 0 {
		return image, err
	}
	return mutate.Annotations(image, annotations).(v1.Image), nil
}

func readConfig(file string) (v1.Config, error) {
	var config v1.Config
	in := os.Stdin
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return config, err
		}
		defer opened.Close()
		in = opened
	}
	decoder := json.NewDecoder(in)
	// A field that was misspelt would silently be missing in the image.
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		return config, fmt.Errorf("%s is not the config object of an image: %w", file, err)
	}
	return config, nil
}

func pairs(from []string) (map[string]string, error) {
	to := map[string]string{}
	for _, pair := range from {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			return nil, fmt.Errorf("annotation %q is not key=value", pair)
		}
		to[key] = value
	}
	return to, nil
}

func openLayer(file string, gzip bool) (v1.Layer, error) {
	if err := isTar(file); err != nil {
		return nil, err
	}
	if gzip {
		return tarball.LayerFromFile(file, tarball.WithCompressionLevel(9), tarball.WithMediaType(types.OCILayer))
	}
	return newPlainLayer(file)
}

// A compressed file would be taken as it is and would make an image whose layer nobody can unpack.
func isTar(file string) error {
	opened, err := os.Open(file)
	if err != nil {
		return err
	}
	defer opened.Close()
	if _, err := tar.NewReader(opened).Next(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s is not a tar file, or it is compressed: %w", file, err)
	}
	return nil
}

// plainLayer is a layer that stays as it is on disk: images for this machine's own containerd need no compression, and an
// image that is not compressed has the same digest whatever version of a compressor is at hand.
type plainLayer struct {
	file string
	hash v1.Hash
	size int64
}

func newPlainLayer(file string) (v1.Layer, error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	hash, size, err := v1.SHA256(opened)
	return &plainLayer{file: file, hash: hash, size: size}, err
}

func (l *plainLayer) Digest() (v1.Hash, error)             { return l.hash, nil }
func (l *plainLayer) DiffID() (v1.Hash, error)             { return l.hash, nil }
func (l *plainLayer) Size() (int64, error)                 { return l.size, nil }
func (l *plainLayer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l *plainLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.file) }
func (l *plainLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.file) }

// archive is a tar file whose entries carry nothing of the moment or the user that made them.
type archive struct {
	*tar.Writer
	written map[string]bool
}

func (a *archive) folder(name string) error {
	return a.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, Format: tar.FormatUSTAR})
}

func (a *archive) file(name string, size int64, content io.Reader) error {
	// Two layers may be equal, and an archive that has an entry twice is a riddle.
	if a.written[name] {
		return nil
	}
	a.written[name] = true
	format := tar.FormatUSTAR
	if size >= 1<<33 {
		format = tar.FormatGNU
	}
	if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: format}); err != nil {
		return err
	}
	_, err := io.Copy(a, content)
	return err
}

func (a *archive) blob(hash v1.Hash, size int64, content io.Reader) error {
	return a.file("blobs/"+hash.Algorithm+"/"+hash.Hex, size, content)
}

func write(image v1.Image, tag name.Tag, o options, file string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	index, err := indexOf(image, tag, o)
	if err != nil {
		return err
	}
	to := &archive{tar.NewWriter(out), map[string]bool{}}
	if err := errors.Join(to.folder("blobs/"), to.folder("blobs/sha256/")); err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if err := writeLayer(to, layer); err != nil {
			return err
		}
	}
	if err := writeDocuments(to, image, index); err != nil {
		return err
	}
	return errors.Join(to.Close(), out.Close())
}

func writeLayer(to *archive, layer v1.Layer) error {
	hash, err := layer.Digest()
	if err != nil {
		return err
	}
	size, err := layer.Size()
	if err != nil {
		return err
	}
	content, err := layer.Compressed()
	if err != nil {
		return err
	}
	defer content.Close()
	return to.blob(hash, size, content)
}

func writeDocuments(to *archive, image v1.Image, index []byte) error {
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	for _, document := range [][]byte{config, manifest} {
		hash, size, err := v1.SHA256(bytes.NewReader(document))
		if err != nil {
			return err
		}
		if err := to.blob(hash, size, bytes.NewReader(document)); err != nil {
			return err
		}
	}
	version := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	return errors.Join(
		to.file("index.json", int64(len(index)), bytes.NewReader(index)),
		to.file("oci-layout", int64(len(version)), bytes.NewReader(version)),
	)
}

func indexOf(image v1.Image, tag name.Tag, o options) ([]byte, error) {
	hash, err := image.Digest()
	if err != nil {
		return nil, err
	}
	size, err := image.Size()
	if err != nil {
		return nil, err
	}
	platform, err := v1.ParsePlatform(o.platform)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1,
			Digest:    hash,
			Size:      size,
			Platform:  platform,
			Annotations: map[string]string{
				// containerd takes the whole name from the first, other tools the tag from the second.
				"io.containerd.image.name":          o.name,
				"org.opencontainers.image.ref.name": tag.TagStr(),
			},
		}},
	})
}

func check(folder string) (v1.Hash, error) {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return v1.Hash{}, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return v1.Hash{}, err
	}
	if len(manifest.Manifests) != 1 {
		return v1.Hash{}, fmt.Errorf("%d images in it, not one", len(manifest.Manifests))
	}
	digest := manifest.Manifests[0].Digest
	image, err := index.Image(digest)
	if err != nil {
		return digest, err
	}
	return digest, checkImage(image, manifest.Manifests[0])
}

// The library's own `validate` takes every layer for a compressed one.
func checkImage(image v1.Image, descriptor v1.Descriptor) error {
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	if err := checkDocument("the manifest", image.RawManifest, descriptor); err != nil {
		return err
	}
	if err := checkDocument("the config", image.RawConfigFile, manifest.Config); err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(layers) {
		return fmt.Errorf("%d layers, but the config knows %d", len(layers), len(config.RootFS.DiffIDs))
	}
	for i, layer := range layers {
		what := fmt.Sprintf("layer %d", i)
		if err := checkContent(what, layer.Compressed, manifest.Layers[i].Digest, manifest.Layers[i].Size); err != nil {
			return err
		}
		if err := checkContent(what+", unpacked,", layer.Uncompressed, config.RootFS.DiffIDs[i], -1); err != nil {
			return err
		}
	}
	return nil
}

func checkDocument(what string, read func() ([]byte, error), claimed v1.Descriptor) error {
	document, err := read()
	if err != nil {
		return err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(document)), nil }
	return checkContent(what, open, claimed.Digest, claimed.Size)
}

func checkContent(what string, open func() (io.ReadCloser, error), claimed v1.Hash, length int64) error {
	content, err := open()
	if err != nil {
		return err
	}
	defer content.Close()
	found, size, err := v1.SHA256(content)
	if err != nil {
		return err
	}
	if found != claimed || (length >= 0 && size != length) {
		return fmt.Errorf("%s is %s with %d bytes, not %s", what, found, size, claimed)
	}
	return nil
}
