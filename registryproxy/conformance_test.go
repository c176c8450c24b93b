package registryproxy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/agent/registry/registrytest"
	"github.com/xylem-project/xylem/registryproxy"
)

// debianRegistry runs Debian's docker-registry and returns a handler that hands on to it.
func debianRegistry(t *testing.T) http.Handler {
	t.Helper()
	addr := registrytest.Start(t)
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	proxy.Transport = transport
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	return proxy
}

// content is what the conformance tests find in a registry.
type content struct {
	blob            []byte
	blobDigest      digest.Digest
	manifest, index []byte
	image, list     digest.Digest
	sbom, signature digest.Digest // referrers of image
}

func fill(t *testing.T, h http.Handler, referrersAPI bool) content {
	t.Helper()
	c := content{blob: noise(3, 700_000)}
	config := []byte("{}")
	configDigest := push(t, h, "some/image", "", "", config)
	c.blobDigest = push(t, h, "some/image", "", "", c.blob)
	manifest := func(artifactType string, subject *ocispec.Descriptor) []byte {
		configType := ocispec.MediaTypeImageConfig
		if artifactType != "" {
			configType = artifactType // what go-containerregistry takes for the artifact's
		}
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Subject: subject,
			Config: ocispec.Descriptor{MediaType: configType, Digest: configDigest, Size: 2},
			Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: c.blobDigest, Size: int64(len(c.blob))}}}
		m.SchemaVersion = 2
		return encode(t, m)
	}
	c.manifest = manifest("", nil)
	for _, tag := range []string{"a", "b", "c", "v1"} {
		c.image = push(t, h, "some/image", tag, ocispec.MediaTypeImageManifest, c.manifest)
	}
	image := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: c.image, Size: int64(len(c.manifest))}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{image}}
	index.SchemaVersion = 2
	c.index = encode(t, index)
	c.list = push(t, h, "some/image", "list", ocispec.MediaTypeImageIndex, c.index)
	var referrers []ocispec.Descriptor
	for _, a := range []struct {
		kind string
		to   *digest.Digest
	}{{"application/vnd.test.sbom", &c.sbom}, {"application/vnd.test.signature", &c.signature}} {
		m := manifest(a.kind, &image)
		*a.to = push(t, h, "some/image", digest.FromBytes(m).String(), ocispec.MediaTypeImageManifest, m)
		referrers = append(referrers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: *a.to, Size: int64(len(m)), ArtifactType: a.kind})
	}
	if !referrersAPI {
		fallback := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: referrers}
		fallback.SchemaVersion = 2
		push(t, h, "some/image", strings.Replace(c.image.String(), ":", "-", 1), ocispec.MediaTypeImageIndex, encode(t, fallback))
	}
	return c
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const unknownDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// behaviour is a sentence of the distribution specification, as a request and what must come.
type behaviour struct {
	says    string
	method  string
	path    string // after /v2/
	headers []string
	status  int
	code    string // of the error
	want    map[string]string
	body    []byte
}

func behaviours(c content) []behaviour {
	blob, image := "some/image/blobs/"+c.blobDigest.String(), "some/image/manifests/"+c.image.String()
	size, unknown := strconv.Itoa(len(c.blob)), "some/image/blobs/"+unknownDigest
	blobHeaders := map[string]string{"Docker-Content-Digest": c.blobDigest.String(), "Etag": `"` + c.blobDigest.String() + `"`, "Content-Length": size, "Accept-Ranges": "bytes"}
	imageHeaders := map[string]string{"Docker-Content-Digest": c.image.String(), "Content-Type": ocispec.MediaTypeImageManifest, "Content-Length": strconv.Itoa(len(c.manifest))}
	part := func(s string) map[string]string { return map[string]string{"Content-Range": "bytes " + s + "/" + size} }
	return []behaviour{
		{"end-1: a registry answers 200 at its base", "GET", "", nil, 200, "", nil, []byte("{}")},
		{"end-1 with HEAD", "HEAD", "", nil, 200, "", nil, []byte{}},
		{"end-2: GET of a blob that exists is 200 with the blob", "GET", blob, nil, 200, "", blobHeaders, c.blob},
		{"end-2: HEAD of a blob that exists is 200 with its length", "HEAD", blob, nil, 200, "", blobHeaders, []byte{}},
		{"end-2: a blob that is not found is 404", "GET", unknown, nil, 404, "BLOB_UNKNOWN", nil, nil},
		{"end-2: HEAD of a blob that is not found is 404", "HEAD", unknown, nil, 404, "", nil, []byte{}},
		{"a Range is 206 with Content-Range", "GET", blob, []string{"Range: bytes=100-199"}, 206, "", part("100-199"), c.blob[100:200]},
		{"a Range without an end", "GET", blob, []string{"Range: bytes=600000-"}, 206, "", part("600000-699999"), c.blob[600000:]},
		{"a suffix Range", "GET", blob, []string{"Range: bytes=-5"}, 206, "", part("699995-699999"), c.blob[699995:]},
		{"a Range over the end is cut", "GET", blob, []string{"Range: bytes=699990-800000"}, 206, "", part("699990-699999"), c.blob[699990:]},
		{"a Range behind the end is 416", "GET", blob, []string{"Range: bytes=700000-"}, 416, "RANGE_INVALID", map[string]string{"Content-Range": "bytes */" + size}, nil},
		{"several ranges: the whole", "GET", blob, []string{"Range: bytes=0-1,5-9"}, 200, "", blobHeaders, c.blob},
		{"no range at all: the whole", "GET", blob, []string{"Range: lines=1-2"}, 200, "", blobHeaders, c.blob},
		{"HEAD ignores Range", "HEAD", blob, []string{"Range: bytes=0-1"}, 200, "", blobHeaders, []byte{}},
		{"If-Range with the entity tag", "GET", blob, []string{"Range: bytes=0-1", `If-Range: "` + c.blobDigest.String() + `"`}, 206, "", part("0-1"), c.blob[:2]},
		{"If-Range with another one", "GET", blob, []string{"Range: bytes=0-1", `If-Range: "other"`}, 200, "", blobHeaders, c.blob},
		{"If-Range with a weak one", "GET", blob, []string{"Range: bytes=0-1", `If-Range: W/"` + c.blobDigest.String() + `"`}, 200, "", blobHeaders, c.blob},
		{"If-None-Match of a blob", "GET", blob, []string{`If-None-Match: W/"` + c.blobDigest.String() + `"`}, 304, "", nil, []byte{}},
		{"end-3: GET of a manifest by tag", "GET", "some/image/manifests/v1", nil, 200, "", imageHeaders, c.manifest},
		{"end-3: GET of a manifest by digest", "GET", image, nil, 200, "", imageHeaders, c.manifest},
		{"end-3: HEAD of a manifest by tag", "HEAD", "some/image/manifests/v1", nil, 200, "", imageHeaders, []byte{}},
		{"end-3: HEAD of a manifest by digest", "HEAD", image, nil, 200, "", imageHeaders, []byte{}},
		{"end-3: an index keeps its type", "GET", "some/image/manifests/list", nil, 200, "", map[string]string{"Content-Type": ocispec.MediaTypeImageIndex}, c.index},
		{"If-None-Match of a manifest", "GET", image, []string{`If-None-Match: "` + c.image.String() + `"`}, 304, "", nil, []byte{}},
		{"end-3: a tag that is not found is 404", "GET", "some/image/manifests/nope", nil, 404, "MANIFEST_UNKNOWN", nil, nil},
		{"end-3: a manifest that is not found is 404", "GET", "some/image/manifests/" + unknownDigest, nil, 404, "MANIFEST_UNKNOWN", nil, nil},
		{"end-3: a repository that is not found is 404", "HEAD", "no/image/manifests/v1", nil, 404, "", nil, []byte{}},
		{"end-8b: n is the number of tags", "GET", "some/image/tags/list?n=2", nil, 200, "", map[string]string{"Content-Type": "application/json"}, nil},
		{"end-4: pushing is not for a mirror", "POST", "some/image/blobs/uploads/", nil, 405, "UNSUPPORTED", map[string]string{"Allow": "GET, HEAD"}, nil},
		{"end-7", "PUT", "some/image/manifests/v1", nil, 405, "UNSUPPORTED", nil, nil},
		{"end-5", "PATCH", "some/image/blobs/uploads/x", nil, 405, "UNSUPPORTED", nil, nil},
		{"end-9", "DELETE", "some/image/manifests/v1", nil, 405, "UNSUPPORTED", nil, nil},
		{"a name that is none is 400", "GET", "Some/Image/manifests/v1", nil, 400, "NAME_INVALID", nil, nil},
		{"a digest that is none is 400", "GET", "some/image/blobs/sha256:abc", nil, 400, "DIGEST_INVALID", nil, nil},
		{"end-12a: nothing refers to an unknown manifest", "GET", "some/image/referrers/" + unknownDigest, nil, 200, "", map[string]string{"Content-Type": ocispec.MediaTypeImageIndex}, nil},
		{"end-12a: a digest that is none is 400", "GET", "some/image/referrers/v1", nil, 400, "DIGEST_INVALID", nil, nil},
	}
}

// TestConformance has the behaviours of the read side against both registries, cold and warm.
func TestConformance(t *testing.T) {
	for name, registry := range map[string]func(*testing.T) http.Handler{
		"docker-registry":      debianRegistry,
		"go-containerregistry": func(*testing.T) http.Handler { return memoryRegistry() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *registryproxy.Config) { c.DefaultUpstream = host })
			h := registry(t)
			w.up.set(host, h)
			c := fill(t, h, name != "docker-registry")
			for _, pass := range []string{"cold", "warm"} {
				for _, b := range behaviours(c) {
					for _, ns := range []string{"", "ns=" + host} {
						t.Run(pass+"/"+b.says+"/"+ns, func(t *testing.T) { b.check(t, w, ns) })
					}
				}
			}
			t.Run("tags", func(t *testing.T) { checkTagPages(t, w) })
			t.Run("referrers", func(t *testing.T) { checkReferrers(t, w, c) })
		})
	}
}

func (b behaviour) check(t *testing.T, w *world, ns string) {
	path := "/v2/" + b.path
	if ns != "" {
		path += map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + ns
	}
	r := w.do(b.method, path, b.headers...)
	if r.status != b.status || r.err != nil {
		t.Fatalf("status %d, want %d (%v): %.300s", r.status, b.status, r.err, r.body)
	}
	for k, want := range b.want {
		if got := r.header.Get(k); got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	if b.body != nil && !bytes.Equal(r.body, b.body) {
		t.Errorf("%d bytes of body, want %d", len(r.body), len(b.body))
	}
	if b.code == "" {
		return
	}
	var e struct {
		Errors []struct {
			Code    string           `json:"code"`
			Message string           `json:"message"`
			Detail  *json.RawMessage `json:"detail"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(r.body, &e); err != nil || len(e.Errors) == 0 || r.header.Get("Content-Type") != "application/json" {
		t.Fatalf("error body %q, %v", r.body, err)
	}
	if got := e.Errors[0].Code; got != b.code && !(b.code == "MANIFEST_UNKNOWN" && got == "NAME_UNKNOWN") {
		t.Errorf("code %q, want %q", got, b.code)
	}
}

// checkTagPages reads all tags, in pages where the registry knows them: docker-registry does not.
func checkTagPages(t *testing.T, w *world) {
	all, last := map[string]bool{}, ""
	for page := range 10 {
		r := w.get("/v2/some/image/tags/list?n=2&last=" + last)
		var list struct{ Tags []string }
		if err := json.Unmarshal(r.body, &list); r.status != 200 || err != nil {
			t.Fatalf("status %d, %v: %s", r.status, err, r.body)
		}
		if len(list.Tags) == 0 || all[list.Tags[0]] {
			break
		}
		for _, tag := range list.Tags {
			all[tag], last = true, tag
		}
		if page == 9 {
			t.Fatal("pages without end")
		}
	}
	for _, tag := range []string{"a", "b", "c", "v1", "list"} {
		if !all[tag] {
			t.Errorf("tag %s is not in %v", tag, all)
		}
	}
}

// TestLinksStayInTheProxy: what a registry links to is the next page here, with the registry's query and the client's ns.
func TestLinksStayInTheProxy(t *testing.T) {
	for link, want := range map[string]string{
		`</v2/some/image/tags/list?last=b&n=2>; rel="next"`:                    "last=b&n=2",
		`<https://registry.example/v2/other/tags/list?n=2&last=b>; rel="next"`: "last=b&n=2",
		`<list?token=x%26y&ns=evil>;rel="next"`:                                "token=x%26y",
		`</v2/some/image/tags/list?n=2>; rel="prev"`:                           "",
		`</v2/some/image/tags/list?n=2`:                                        "",
		"":                                                                     "",
	} {
		w := newWorld(t, func(c *registryproxy.Config) { c.DefaultUpstream = host })
		w.up.set(host, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Link", link)
			fmt.Fprint(rw, `{"name":"some/image","tags":[]}`)
		}))
		for query, ns := range map[string]string{"?n=2": "", "?n=2&ns=" + host: "ns=" + host + "&"} {
			expect := ""
			if want != "" {
				q, _ := url.ParseQuery(ns + want)
				expect = "</v2/some/image/tags/list?" + q.Encode() + `>; rel="next"`
			}
			if got := w.get("/v2/some/image/tags/list" + query).header.Get("Link"); got != expect {
				t.Errorf("%s with %s becomes %s, want %s", link, query, got, expect)
			}
		}
	}
}

func checkReferrers(t *testing.T, w *world, c content) {
	for query, want := range map[string][]digest.Digest{
		"": {c.sbom, c.signature},
		"?artifactType=application/vnd.test.sbom": {c.sbom},
		"?artifactType=application/none":          {},
	} {
		r := w.get("/v2/some/image/referrers/" + c.image.String() + query)
		var ix ocispec.Index
		if err := json.Unmarshal(r.body, &ix); r.status != 200 || err != nil || ix.MediaType != ocispec.MediaTypeImageIndex || ix.Manifests == nil {
			t.Fatalf("%q: status %d, %v: %s", query, r.status, err, r.body)
		}
		got := map[digest.Digest]bool{}
		for _, m := range ix.Manifests {
			got[m.Digest] = true
		}
		for _, d := range want {
			if !got[d] {
				t.Errorf("%q: %s is missing in %s", query, d, r.body)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%q: %d referrers, want %d", query, len(got), len(want))
		}
		if applied := r.header.Get("OCI-Filters-Applied"); (query == "") != (applied == "") {
			t.Errorf("%q: filters applied: %q", query, applied)
		}
	}
}
