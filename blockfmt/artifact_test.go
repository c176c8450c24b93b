package blockfmt_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

func descriptor(mediaType, name string, annotations ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(name), Size: int64(len(name))}
	for i := 0; i < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

func artifact(layers int) *blockfmt.Artifact {
	a := &blockfmt.Artifact{
		Source:    descriptor(ocispec.MediaTypeImageManifest, "source"),
		Platform:  ocispec.Platform{OS: "linux", Architecture: "amd64", OSFeatures: []string{blockfmt.OSFeature}},
		Metadata:  descriptor(blockfmt.MediaTypeEROFSZstd, "metadata", blockfmt.AnnotationUncompressedDigest, digest.FromString("raw metadata").String()),
		Companion: digest.FromString("companion"),
	}
	for i := range layers {
		blob := descriptor(blockfmt.MediaTypeBlob, fmt.Sprint("blob", i), blockfmt.AnnotationRole, blockfmt.RoleDevice)
		if i > 0 {
			blob.Annotations[blockfmt.AnnotationStartupBlocks] = fmt.Sprint(i)
		}
		a.Layers = append(a.Layers, blockfmt.Layer{
			DiffID: digest.FromString(fmt.Sprint("layer", i)), Blob: blob, StartupBlocks: i,
			Index: descriptor(blockfmt.MediaTypeChunkIndex, fmt.Sprint("index", i), blockfmt.AnnotationChunkIndexTarget, blob.Digest.String()),
		})
	}
	return a
}

const sourceConfig = `{"os":"linux","architecture":"amd64","config":{"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"comment":"x"}]}`

func build(t testing.TB, a *blockfmt.Artifact) (manifest, config []byte) {
	t.Helper()
	manifest, config, err := a.Build([]byte(sourceConfig))
	if err != nil {
		t.Fatal(err)
	}
	return manifest, config
}

func TestArtifactRoundTrip(t *testing.T) {
	a := artifact(3)
	manifest, config := build(t, a)
	got, err := blockfmt.ParseArtifact(manifest, config)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, a) {
		t.Errorf("parsed\n%+v, want\n%+v", got, a)
	}
	if again, config2 := build(t, a); !bytes.Equal(again, manifest) || !bytes.Equal(config2, config) {
		t.Error("built differently the second time")
	}
	if a.Digest != digest.FromBytes(manifest) {
		t.Error("digest is not the manifest's")
	}
	var image ocispec.Image
	if err := json.Unmarshal(config, &image); err != nil || len(image.RootFS.DiffIDs) != 7 || len(image.History) != 0 || image.Config.Env[0] != "A=b" {
		t.Errorf("config %s, %v", config, err)
	}
	if ids := a.ChainIDs(); len(ids) != 3 || ids[0] != a.Layers[0].DiffID || ids[2] == ids[1] {
		t.Errorf("chain IDs %v", ids)
	}
}

// TestArtifactBad changes one thing in a manifest or config at a time; the other is made to fit.
func TestArtifactBad(t *testing.T) {
	for name, test := range map[string]struct {
		manifest func(*ocispec.Manifest)
		config   func(map[string]any)
		want     error
	}{
		"good":                   {nil, nil, nil},
		"another artifact type":  {func(m *ocispec.Manifest) { m.ArtifactType = "x/y" }, nil, blockfmt.ErrUnsupported},
		"config of another":      {func(m *ocispec.Manifest) { m.Config.Digest = digest.FromString("x") }, nil, blockfmt.ErrCorrupt},
		"no subject":             {func(m *ocispec.Manifest) { m.Subject = nil }, nil, blockfmt.ErrCorrupt},
		"another subject":        {func(m *ocispec.Manifest) { m.Subject.Digest = digest.FromString("x") }, nil, blockfmt.ErrCorrupt},
		"no layers":              {func(m *ocispec.Manifest) { m.Layers = nil }, nil, blockfmt.ErrCorrupt},
		"layer missing":          {func(m *ocispec.Manifest) { m.Layers = m.Layers[1:] }, nil, blockfmt.ErrCorrupt},
		"layers swapped":         {func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }, nil, blockfmt.ErrCorrupt},
		"index of another":       {func(m *ocispec.Manifest) { m.Layers[1], m.Layers[3] = m.Layers[3], m.Layers[1] }, nil, blockfmt.ErrCorrupt},
		"metadata type":          {func(m *ocispec.Manifest) { m.Layers[4].MediaType = "x/y" }, nil, blockfmt.ErrCorrupt},
		"bad digest":             {func(m *ocispec.Manifest) { m.Layers[2].Digest = "sha256:../../etc" }, nil, blockfmt.ErrCorrupt},
		"other algorithm":        {func(m *ocispec.Manifest) { m.Layers[2].Digest = digest.SHA512.FromString("x") }, nil, blockfmt.ErrCorrupt},
		"negative size":          {func(m *ocispec.Manifest) { m.Layers[2].Size = -1 }, nil, blockfmt.ErrCorrupt},
		"bad companion":          {func(m *ocispec.Manifest) { m.Annotations[blockfmt.AnnotationCompanion] = "x" }, nil, blockfmt.ErrCorrupt},
		"negative startup":       {func(m *ocispec.Manifest) { m.Layers[0].Annotations[blockfmt.AnnotationStartupBlocks] = "-5" }, nil, nil},
		"no source in config":    {nil, func(c map[string]any) { delete(c, "xylem") }, blockfmt.ErrCorrupt},
		"diffIDs missing":        {nil, func(c map[string]any) { c["xylem"].(map[string]any)["diffIDs"] = []any{} }, blockfmt.ErrCorrupt},
		"diffID nonsense":        {nil, func(c map[string]any) { c["xylem"].(map[string]any)["diffIDs"].([]any)[0] = "/etc" }, blockfmt.ErrCorrupt},
		"config of wrong types":  {nil, func(c map[string]any) { c["os"] = 7 }, blockfmt.ErrCorrupt},
		"source without digest":  {func(m *ocispec.Manifest) { m.Subject.Digest = "" }, func(c map[string]any) { c["xylem"].(map[string]any)["source"].(map[string]any)["digest"] = "" }, blockfmt.ErrCorrupt},
		"source of another size": {func(m *ocispec.Manifest) { m.Subject.Size++ }, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			manifest, config := build(t, artifact(2))
			var m ocispec.Manifest
			var c map[string]any
			if err := errors.Join(json.Unmarshal(manifest, &m), json.Unmarshal(config, &c)); err != nil {
				t.Fatal(err)
			}
			if test.config != nil {
				test.config(c)
				config, _ = json.Marshal(c)
				m.Config.Digest = digest.FromBytes(config)
			}
			if test.manifest != nil {
				test.manifest(&m)
			}
			manifest, _ = json.Marshal(m)
			a, err := blockfmt.ParseArtifact(manifest, config)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if err == nil && a.Layers[0].StartupBlocks < 0 {
				t.Errorf("%d startup blocks", a.Layers[0].StartupBlocks)
			}
		})
	}
}

func FuzzParseArtifact(f *testing.F) {
	manifest, config := build(f, artifact(2))
	f.Add(manifest, config)
	f.Add([]byte(`{"artifactType":"`+blockfmt.ArtifactType+`","subject":{},"layers":[{},{},{}]}`), []byte(`{"xylem":{"diffIDs":["x"]}}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		// whoever fuzzes a manifest does not find the config's hash
		var m map[string]any
		if json.Unmarshal(manifest, &m) == nil && m["config"] != nil {
			m["config"] = map[string]any{"digest": digest.FromBytes(config).String()}
			manifest, _ = json.Marshal(m)
		}
		a, err := blockfmt.ParseArtifact(manifest, config)
		if err != nil {
			if !errors.Is(err, blockfmt.ErrCorrupt) && !errors.Is(err, blockfmt.ErrUnsupported) {
				t.Errorf("error %v", err)
			}
			return
		}
		if len(a.Layers) == 0 || len(a.ChainIDs()) != len(a.Layers) {
			t.Errorf("%d layers", len(a.Layers))
		}
		for _, l := range a.Layers {
			if l.Blob.Digest.Validate() != nil || l.Index.Digest.Validate() != nil || l.DiffID.Validate() != nil || l.StartupBlocks < 0 {
				t.Errorf("layer %+v", l)
			}
		}
	})
}

func TestCompanion(t *testing.T) {
	record := descriptor(blockfmt.MediaTypeRecord, "record")
	for _, rec := range []*ocispec.Descriptor{nil, &record} {
		c := &blockfmt.Companion{Source: descriptor(ocispec.MediaTypeImageManifest, "source"), Record: rec}
		for i := range 3 {
			c.Layers = append(c.Layers, descriptor(blockfmt.MediaTypeEROFSZstd, fmt.Sprint(i)))
		}
		manifest, err := c.Build()
		if err != nil {
			t.Fatal(err)
		}
		got, err := blockfmt.ParseCompanion(manifest, 3)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("parsed %+v, %v; want %+v", got, err, c)
		}
		for _, layers := range []int{1, 5, 1 << 30, -1} {
			if _, err := blockfmt.ParseCompanion(manifest, layers); !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("for %d layers: %v", layers, err)
			}
		}
	}
}

func FuzzParseCompanion(f *testing.F) {
	manifest, err := (&blockfmt.Companion{Source: descriptor("a/b", "source"), Layers: []ocispec.Descriptor{descriptor("a/b", "x")}}).Build()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(manifest, 1)
	f.Add(manifest, 0)
	f.Fuzz(func(t *testing.T, manifest []byte, layers int) {
		c, err := blockfmt.ParseCompanion(manifest, layers)
		if err == nil && len(c.Layers) != layers {
			t.Errorf("%d layers, want %d", len(c.Layers), layers)
		}
		if err != nil && !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("error %v", err)
		}
		if err == nil {
			for _, d := range c.Layers {
				if d.Digest.Validate() != nil || d.Size < 0 {
					t.Errorf("descriptor %+v", d)
				}
			}
		}
	})
}

func TestSignature(t *testing.T) {
	seed := func(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }
	public := func(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
	key, stranger := seed(1), seed(2)
	manifest, _ := build(t, artifact(2))
	signed, err := blockfmt.Sign(manifest, key)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := blockfmt.Sign(manifest, key); err != nil || !bytes.Equal(again, signed) {
		t.Errorf("signed differently the second time: %v", err)
	}
	if again, err := blockfmt.Sign(signed, key); err != nil || !bytes.Equal(again, signed) {
		t.Errorf("signed anew it differs: %v", err)
	}
	trusted := []ed25519.PublicKey{public(stranger), public(key)}
	if err := blockfmt.VerifySignature(signed, trusted); err != nil {
		t.Errorf("good signature: %v", err)
	}
	value := strings.Split(strings.SplitAfter(string(signed), blockfmt.AnnotationSignature+`":"`)[1], `"`)[0]
	for name, test := range map[string]struct {
		manifest []byte
		trusted  []ed25519.PublicKey
		want     error
	}{
		"unsigned":         {manifest, trusted, blockfmt.ErrDenied},
		"nobody trusted":   {signed, nil, blockfmt.ErrDenied},
		"stranger":         {signed, []ed25519.PublicKey{public(stranger)}, blockfmt.ErrDenied},
		"broken key":       {signed, []ed25519.PublicKey{nil, {1, 2, 3}}, blockfmt.ErrDenied},
		"changed":          {bytes.Replace(signed, []byte(`"size":6`), []byte(`"size":7`), 1), trusted, blockfmt.ErrDenied},
		"added space":      {append(bytes.Clone(signed), ' '), trusted, blockfmt.ErrDenied},
		"signature twice":  {bytes.Replace(signed, []byte(`"annotations"`), []byte(`"x":"`+value+`","annotations"`), 1), trusted, blockfmt.ErrDenied},
		"empty signature":  {bytes.Replace(signed, []byte(value), nil, 1), trusted, blockfmt.ErrDenied},
		"another's":        {bytes.Replace(signed, []byte(value), []byte(strings.Repeat("A", 86)+"=="), 1), trusted, blockfmt.ErrDenied},
		"not base64":       {bytes.Replace(signed, []byte(value), []byte("***"), 1), trusted, blockfmt.ErrDenied},
		"not a manifest":   {[]byte("{"), trusted, blockfmt.ErrCorrupt},
		"nothing":          {nil, trusted, blockfmt.ErrCorrupt},
		"annotations only": {[]byte(`{"annotations":{}}`), trusted, blockfmt.ErrDenied},
	} {
		if err := blockfmt.VerifySignature(test.manifest, test.trusted); !errors.Is(err, test.want) {
			t.Errorf("%s: error %v, want %v", name, err, test.want)
		}
	}
}

// FuzzVerifySignature: nothing but the bytes that were signed passes.
func FuzzVerifySignature(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	manifest, _ := build(f, artifact(1))
	signed, err := blockfmt.Sign(manifest, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(manifest)
	f.Fuzz(func(t *testing.T, data []byte) {
		err := blockfmt.VerifySignature(data, []ed25519.PublicKey{key.Public().(ed25519.PublicKey)})
		if err == nil && !bytes.Equal(data, signed) {
			t.Errorf("passes: %q", data)
		}
	})
}

func TestStartupBlocks(t *testing.T) {
	manifest, _ := build(t, artifact(4)) // 0, 1, 2 and 3 of them
	negative := bytes.Replace(manifest, []byte(`startup-blocks":"3"`), []byte(`startup-blocks":"-3"`), 1)
	for text, want := range map[string]int{string(manifest): 6, string(negative): 3, "{": 0, "{}": 0, "": 0} {
		if n := blockfmt.StartupBlocks([]byte(text)); n != want {
			t.Errorf("%.40q: %d, want %d", text, n, want)
		}
	}
}

func TestIsVerified(t *testing.T) {
	if blockfmt.IsVerified(blockfmt.SourceFunc(nil)) {
		t.Error("a function is believed to verify")
	}
}
