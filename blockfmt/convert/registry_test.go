package convert_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

// memoryRegistry starts a registry in memory and returns its address.
func memoryRegistry(t *testing.T, wrap func(http.Handler) http.Handler, opts ...registry.Option) string {
	t.Helper()
	h := registry.New(append(opts, registry.Logger(log.New(io.Discard, "", 0)))...)
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// dockerRegistry starts Debian's docker-registry, which has no referrers API.
func dockerRegistry(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	config := filepath.Join(t.TempDir(), "config.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", t.TempDir(), addr), 0o644))
	cmd := exec.Command("docker-registry", "serve", config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			resp.Body.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer: %v\n%s", err, out.String())
		}
	}
}

// upload copies an image or index from a layout to a registry.
func upload(t *testing.T, l *layout, d ocispec.Descriptor, target string) {
	t.Helper()
	ref, err := name.ParseReference(target)
	must(t, err)
	raw, err := os.ReadFile(l.path(d.Digest))
	must(t, err)
	var m struct {
		Config            ocispec.Descriptor
		Layers, Manifests []ocispec.Descriptor
	}
	must(t, json.Unmarshal(raw, &m))
	for _, child := range m.Manifests {
		upload(t, l, child, ref.Context().Digest(child.Digest.String()).String())
	}
	if m.Config.Digest != "" {
		m.Layers = append(m.Layers, m.Config)
	}
	for _, b := range m.Layers {
		data, err := os.ReadFile(l.path(b.Digest))
		must(t, err)
		must(t, remote.WriteLayer(ref.Context(), static.NewLayer(data, "application/octet-stream")))
	}
	must(t, remote.Put(ref, manifest{raw, d.MediaType}))
}

type manifest struct {
	raw       []byte
	mediaType string
}

func (m manifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m manifest) MediaType() (types.MediaType, error) { return types.MediaType(m.mediaType), nil }

var helloTar = func(t testing.TB) []byte { return archive(t, file("hello", "world")) }

// hello puts an image of one layer into a registry.
func hello(t *testing.T, addr string) string {
	t.Helper()
	l := newLayout(t)
	ref := addr + "/some/hello:v1"
	upload(t, l, l.image("", ocispec.MediaTypeImageManifest, amd64, source{tar: helloTar(t)}), ref)
	return ref
}

func TestPushIsFoundThroughReferrers(t *testing.T) {
	for kind, addr := range map[string]string{
		"referrers API":   memoryRegistry(t, nil, registry.WithReferrersSupport(true)),
		"tag schema":      memoryRegistry(t, nil, registry.WithReferrersSupport(false)),
		"docker-registry": dockerRegistry(t),
	} {
		t.Run(kind, func(t *testing.T) {
			ref := hello(t, addr)
			sbom := attach(t, ref) // what others attached must stay
			_, key, err := ed25519.GenerateKey(nil)
			must(t, err)
			r := converted(t, ref, convert.Options{Key: key})
			must(t, r.Push(context.Background(), "", "v1-blocks", convert.Registry{}))
			must(t, r.Push(context.Background(), ref, "", convert.Registry{})) // again: nothing happens
			found := map[digest.Digest]ocispec.Descriptor{}
			for _, d := range referrers(t, ref, r.Artifact.Source.Digest) {
				found[d.Digest] = d
			}
			for _, want := range []digest.Digest{r.Artifact.Digest, r.Artifact.Companion, sbom} {
				if _, ok := found[want]; !ok {
					t.Errorf("%s is not among the referrers", want)
				}
			}
			d := found[r.Artifact.Digest]
			if len(found) != 3 || kind != "referrers API" && d.ArtifactType != blockfmt.ArtifactType { // the one in memory lists the config's type
				t.Errorf("referrers: %v", found)
			}
			pulled(t, ref, d, r, key)
			tagged, err := remote.Get(must2(name.ParseReference(addr + "/some/hello:v1-blocks")))
			must(t, err)
			if tagged.Digest.String() != r.Artifact.Digest.String() {
				t.Errorf("tag is on %s, want %s", tagged.Digest, r.Artifact.Digest)
			}
		})
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// attach puts a referrer of somebody else's on an image.
func attach(t *testing.T, target string) digest.Digest {
	t.Helper()
	ref := must2(name.ParseReference(target))
	image, err := remote.Get(ref)
	must(t, err)
	must(t, remote.WriteLayer(ref.Context(), static.NewLayer([]byte("{}"), "application/json")))
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example.sbom",
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{ocispec.DescriptorEmptyJSON},
		Subject: &ocispec.Descriptor{MediaType: string(image.MediaType), Digest: digest.Digest(image.Digest.String()), Size: image.Size},
	})
	must(t, err)
	must(t, remote.Put(ref.Context().Digest(digest.FromBytes(raw).String()), manifest{raw, ocispec.MediaTypeImageManifest}))
	return digest.FromBytes(raw)
}

func referrers(t *testing.T, target string, subject digest.Digest) []ocispec.Descriptor {
	t.Helper()
	index, err := remote.Referrers(must2(name.ParseReference(target)).Context().Digest(subject.String()))
	must(t, err)
	raw, err := index.RawManifest()
	must(t, err)
	var out ocispec.Index
	must(t, json.Unmarshal(raw, &out))
	return out.Manifests
}

// pulled checks that everything of a block image can be got back from the registry.
func pulled(t *testing.T, target string, d ocispec.Descriptor, r *convert.Result, key ed25519.PrivateKey) {
	t.Helper()
	repo := must2(name.ParseReference(target)).Context()
	got, err := remote.Get(repo.Digest(d.Digest.String()))
	must(t, err)
	if !bytes.Equal(got.Manifest, r.Manifest) {
		t.Error("manifest differs")
	}
	must(t, blockfmt.VerifySignature(got.Manifest, []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}))
	companion, err := remote.Get(repo.Digest(r.Artifact.Companion.String()))
	must(t, err)
	for _, raw := range [][]byte{got.Manifest, companion.Manifest} {
		var m ocispec.Manifest
		must(t, json.Unmarshal(raw, &m))
		for _, b := range append(m.Layers, m.Config) {
			layer, err := remote.Layer(repo.Digest(b.Digest.String()))
			must(t, err)
			rc, err := layer.Compressed()
			must(t, err)
			n, err := io.Copy(io.Discard, rc) // verifies the digest
			must(t, errors.Join(err, rc.Close()))
			if n != b.Size {
				t.Errorf("blob %s has %d bytes, want %d", b.Digest, n, b.Size)
			}
		}
	}
}

func TestPushSkipsWhatIsThere(t *testing.T) {
	var puts atomic.Int64
	addr := memoryRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodPatch {
				puts.Add(1)
			}
			h.ServeHTTP(w, req)
		})
	})
	ref := hello(t, addr)
	r := converted(t, ref, convert.Options{})
	puts.Store(0)
	must(t, r.Push(context.Background(), "", "", convert.Registry{}))
	if puts.Load() == 0 {
		t.Fatal("no uploads seen")
	}
	puts.Store(0)
	must(t, r.Push(context.Background(), "", "", convert.Registry{}))
	if n := puts.Load(); n != 0 {
		t.Errorf("%d blobs uploaded a second time", n)
	}
}

func TestPlatforms(t *testing.T) {
	l := newLayout(t)
	var manifests []ocispec.Descriptor
	add := func(os, arch, variant string, features ...string) {
		p := ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
		d := l.image("", ocispec.MediaTypeImageManifest, p, source{tar: archive(t, file("platform", os+"/"+arch+"/"+variant))})
		p.OSFeatures = features
		d.Platform = &p
		manifests = append(manifests, d)
	}
	add("linux", "amd64", "", "erofs") // a block image beside its source
	add("unknown", "unknown", "")
	add("linux", "amd64", "")
	add("linux", "arm64", "v8")
	add("linux", "arm", "v6")
	add("linux", "arm", "v7")
	add("windows", "amd64", "")
	for _, mediaType := range []string{ocispec.MediaTypeImageIndex, dockerList} {
		d := l.json(mediaType, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Manifests: manifests})
		tag := fmt.Sprintf("v%d", len(mediaType))
		l.tag(tag, d)
		ref := memoryRegistry(t, nil) + "/x/y:" + tag
		upload(t, l, d, ref)
		for _, from := range []string{ref, "oci:" + l.dir + ":" + tag} {
			for platform, want := range map[string]string{
				"linux/amd64": "linux/amd64/", "linux/arm64": "linux/arm64/v8", "linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "windows/amd64": "windows/amd64/",
				"linux/x86_64": "linux/amd64/",
			} {
				src, err := convert.Open(context.Background(), from, platform, convert.Registry{})
				must(t, err)
				if got := src.Platform.OS + "/" + src.Platform.Architecture + "/" + src.Platform.Variant; got != want {
					t.Errorf("%s: got %s, want %s", platform, got, want)
				}
			}
			if _, err := convert.Open(context.Background(), from, "linux/s390x", convert.Registry{}); !errors.Is(err, blockfmt.ErrNotFound) {
				t.Errorf("s390x: %v", err)
			}
		}
	}
}

func TestLayerAndManifestTypes(t *testing.T) {
	data := archive(t, file("hello", "world"))
	addr := memoryRegistry(t, nil)
	for i, c := range []struct {
		manifest, layer string
		pack            func(testing.TB, []byte) []byte
	}{
		{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayer, plain},
		{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerGzip, gzipped},
		{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerZstd, zstded},
		{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageLayerGzip, zstded}, // wrong, and common
		{dockerManifest, dockerLayer, gzipped},
		{dockerManifest, "application/vnd.docker.image.rootfs.diff.tar", plain},
		{dockerManifest, "application/vnd.docker.image.rootfs.diff.tar.zstd", zstded},
	} {
		l := newLayout(t)
		d := l.image("v1", c.manifest, amd64, source{tar: data, pack: c.pack, mediaType: c.layer})
		ref := fmt.Sprintf("%s/types:v%d", addr, i)
		upload(t, l, d, ref)
		for _, from := range []string{ref, "oci:" + l.dir + ":v1", "oci:" + l.dir, ref[:strings.LastIndex(ref, ":")] + "@" + d.Digest.String()} {
			r := converted(t, from, convert.Options{})
			if got := string(viewOf(t, r).read("hello")); got != "world" || r.Artifact.Source.MediaType != c.manifest || r.Artifact.Source.Digest != d.Digest {
				t.Errorf("%v: got %q from %+v", c, got, r.Artifact.Source)
			}
		}
	}
}

// A registry answers in every wrong way; each is an error of the right kind.
func TestRegistryFaults(t *testing.T) {
	var fault atomic.Value // func(http.ResponseWriter, *http.Request) bool
	fault.Store(func(http.ResponseWriter, *http.Request) bool { return false })
	addr := memoryRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if !fault.Load().(func(http.ResponseWriter, *http.Request) bool)(w, req) {
				h.ServeHTTP(w, req)
			}
		})
	})
	ref := hello(t, addr)
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, req *http.Request) bool {
			if strings.Contains(req.URL.Path, "/blobs/") {
				w.WriteHeader(code)
				return true
			}
			return false
		}
	}
	for name, c := range map[string]struct {
		kind error
		do   func(http.ResponseWriter, *http.Request) bool
	}{
		"404": {blockfmt.ErrNotFound, status(404)}, "401": {blockfmt.ErrDenied, status(401)}, "403": {blockfmt.ErrDenied, status(403)},
		"429": {blockfmt.ErrTransient, status(429)}, "500": {blockfmt.ErrTransient, status(500)},
		"huge manifest": {blockfmt.ErrUnsupported, func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Content-Length", fmt.Sprint(1<<30))
			return true // a client that reads it gets an unexpected end instead
		}},
		"endless manifest": {blockfmt.ErrUnsupported, func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			for sent := 0; sent < 1<<30; sent += 1 << 20 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return true
				}
			}
			return true
		}},
		"endless blob": {blockfmt.ErrCorrupt, func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/blobs/") {
				return false
			}
			for sent := 0; sent < 1<<30; sent += 1 << 20 {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return true
				}
			}
			return true
		}},
		"truncated": {blockfmt.ErrTransient, func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/blobs/") {
				return false
			}
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0})
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			fault.Store(c.do)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := convert.Open(ctx, ref, "linux/amd64", convert.Registry{})
			if !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
		})
	}
}

// A layer whose download breaks off is tried again.
func TestRetriesBrokenDownloads(t *testing.T) {
	data := archive(t, file("big", strings.Repeat("some text ", 100_000)))
	layer := digest.FromBytes(data)
	var breaks atomic.Int64
	addr := memoryRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/"+layer.String()) && breaks.Add(-1) >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:len(data)/3])
				return
			}
			h.ServeHTTP(w, req)
		})
	})
	l := newLayout(t)
	ref := addr + "/x:y"
	upload(t, l, l.image("", ocispec.MediaTypeImageManifest, amd64, source{tar: data, pack: plain, mediaType: ocispec.MediaTypeImageLayer}), ref)
	breaks.Store(1)
	converted(t, ref, convert.Options{})
	breaks.Store(1000)
	refused(t, ref, blockfmt.ErrTransient, convert.Options{})
}

func TestCredentials(t *testing.T) {
	addr := memoryRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if user, password, _ := req.BasicAuth(); req.Method == http.MethodGet && req.UserAgent() != "fill" && (user != "u" || password != "p") {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, req)
		})
	})
	_, err := convert.Open(context.Background(), addr+"/x:y", "", convert.Registry{})
	if !errors.Is(err, blockfmt.ErrDenied) {
		t.Errorf("without credentials: %v", err)
	}
	_, err = convert.Open(context.Background(), addr+"/x:y", "", convert.Registry{Keychain: fixed{}})
	if !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("with credentials: %v", err)
	}
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	must(t, os.WriteFile(filepath.Join(config, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":"dTpw"}}}`, addr), 0o600))
	_, err = convert.Open(context.Background(), addr+"/x:y", "", convert.Registry{})
	if !errors.Is(err, blockfmt.ErrNotFound) {
		t.Errorf("with docker's configuration: %v", err)
	}
}

type fixed struct{}

func (fixed) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "u", Password: "p"}, nil
}

// A registry that stops sending in the middle is given up after a bound, at every kind of request.
func TestStalledRegistry(t *testing.T) {
	data := archive(t, file("big", strings.Repeat("some text ", 100_000)))
	for _, part := range []string{"/manifests/", "/blobs/" + digest.FromBytes(data).String()} {
		var on atomic.Bool
		addr := memoryRegistry(t, func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if !on.Load() || req.Method != http.MethodGet || !strings.Contains(req.URL.Path, part) {
					h.ServeHTTP(w, req)
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:1000])
				w.(http.Flusher).Flush()
				<-req.Context().Done()
			})
		})
		l := newLayout(t)
		ref := addr + "/x:y"
		upload(t, l, l.image("", ocispec.MediaTypeImageManifest, amd64, source{tar: data, pack: plain, mediaType: ocispec.MediaTypeImageLayer}), ref)
		on.Store(true)
		src, err := convert.Open(context.Background(), ref, "", convert.Registry{Stall: 100 * time.Millisecond})
		if err == nil {
			_, err = convert.Convert(context.Background(), src, convert.Options{TempDir: t.TempDir()})
		}
		if !errors.Is(err, blockfmt.ErrTransient) || !strings.Contains(err.Error(), "sent nothing") {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// A cancelled conversion ends at once and leaves nothing behind.
func TestCancelledConversion(t *testing.T) {
	for _, phase := range []convert.Phase{convert.PhaseFetch, convert.PhaseEncode} {
		ctx, cancel := context.WithCancel(context.Background())
		temp := t.TempDir()
		_, err := convert.Convert(ctx, open(t, threeLayers(t, "v1")), convert.Options{TempDir: temp, Progress: func(p convert.Progress) {
			if p.Phase == phase {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", phase, err)
		}
		if left, _ := os.ReadDir(temp); len(left) != 0 {
			t.Errorf("%s: left behind %v", phase, left)
		}
	}
}
