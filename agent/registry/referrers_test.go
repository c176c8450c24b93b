package registry_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

func referrer(i int, artifactType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Size: 5, ArtifactType: artifactType}
}

func writeIndex(w http.ResponseWriter, list ...ocispec.Descriptor) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	_ = json.NewEncoder(w).Encode(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
}

func TestReferrers(t *testing.T) {
	subject := digest.FromString("subject")
	tag := strings.Replace(subject.String(), ":", "-", 1)
	mine, other := referrer(1, "mine"), referrer(2, "other")
	api := func(list ...ocispec.Descriptor) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { writeIndex(w, list...) }
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for name, test := range map[string]struct {
		api, tag http.HandlerFunc
		want     int
		err      error
	}{
		"API":                 {api(mine, other), status(500), 1, nil},
		"API, none":           {api(), status(500), 0, nil},
		"API, bad descriptor": {api(ocispec.Descriptor{Digest: "sha256:x", ArtifactType: "mine"}, ocispec.Descriptor{Digest: subject, Size: -1, ArtifactType: "mine"}), nil, 0, nil},
		"tag":                 {status(404), api(other, mine), 1, nil},
		"tag, old registry":   {status(405), api(mine), 1, nil},
		"tag, web page":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, api(mine), 1, nil},
		"neither":             {status(404), status(404), 0, nil},
		"API fails":           {status(403), api(mine), 0, blockfmt.ErrDenied},
		"tag fails":           {status(404), status(403), 0, blockfmt.ErrDenied},
		"nonsense": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = w.Write([]byte(`{"manifests": 7}`))
		}, nil, 0, blockfmt.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/v2/some/image/referrers/" + subject.String():
					test.api(w, r)
				case "/v2/some/image/manifests/" + tag:
					test.tag(w, r)
				default:
					t.Errorf("request for %s", r.URL)
				}
			})
			c, _ := newClient(t, nil)
			got, err := repository(t, c, host).Referrers(t.Context(), subject, "mine")
			if !errors.Is(err, test.err) || len(got) != test.want || (len(got) == 1 && got[0].Digest != mine.Digest) {
				t.Errorf("%v, %v; want %d, %v", got, err, test.want, test.err)
			}
		})
	}
}

// TestReferrersAPIMissing: a registry without the API is asked for it once; one that only does not know the repository yet,
// every time.
func TestReferrersAPIMissing(t *testing.T) {
	for body, want := range map[string]int{"404 page not found": 1, `{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}`: 3} {
		apiCalls := 0
		host := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/referrers/") {
				apiCalls++
				w.WriteHeader(http.StatusNotFound)
				_, _ = w.Write([]byte(body))
				return
			}
			writeIndex(w, referrer(1, "mine"))
		})
		c, _ := newClient(t, nil)
		for range 3 {
			if got, err := repository(t, c, host).Referrers(t.Context(), digest.FromString("subject"), "mine"); err != nil || len(got) != 1 {
				t.Errorf("%v, %v", got, err)
			}
		}
		if apiCalls != want {
			t.Errorf("%d requests to an API that answers %q, want %d", apiCalls, body, want)
		}
	}
}

// TestReferrersPages: pages are followed, within a bound, and not to other hosts.
func TestReferrersPages(t *testing.T) {
	subject := digest.FromString("subject")
	for name, test := range map[string]struct {
		link func(page int) string
		want int
	}{
		"three":        {func(p int) string { return []string{"?page=1", "?page=2", ""}[p] }, 3},
		"without end":  {func(p int) string { return fmt.Sprint("?page=", p+1) }, 16},
		"another host": {func(int) string { return "http://127.0.0.1:1/v2/x" }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				page := 0
				_, _ = fmt.Sscan(r.URL.Query().Get("page"), &page)
				if link := test.link(page); link != "" {
					w.Header().Set("Link", "<"+link+`>; rel="next"`)
				}
				writeIndex(w, referrer(page, "mine"))
			})
			c, _ := newClient(t, nil)
			got, err := repository(t, c, host).Referrers(t.Context(), subject, "")
			if err != nil || len(got) != test.want {
				t.Errorf("%d referrers, %v; want %d", len(got), err, test.want)
			}
		})
	}
}

// TestResolve: with and without the optional header, and with a registry that lies about digests.
func TestResolve(t *testing.T) {
	body := []byte(`{"schemaVersion":2}`)
	right, wrong := digest.FromBytes(body), digest.FromString("other")
	for name, test := range map[string]struct {
		identifier string
		header     digest.Digest
		want       error
	}{
		"tag":                        {":v1", right, nil},
		"no tag":                     {"", right, nil},
		"no header":                  {":v1", "", nil},
		"nonsense header":            {":v1", "sha256:nonsense", nil},
		"digest":                     {"@" + right.String(), right, nil},
		"digest, no header":          {"@" + right.String(), "", nil},
		"digest, wrong header":       {"@" + right.String(), wrong, blockfmt.ErrCorrupt},
		"digest, no header, no such": {"@" + wrong.String(), "", blockfmt.ErrCorrupt},
		"no reference":               {":v1:v2", right, blockfmt.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				if test.header != "" {
					w.Header().Set("Docker-Content-Digest", test.header.String())
				}
				_, _ = w.Write(body)
			})
			c, _ := newClient(t, nil)
			_, desc, err := c.Resolve(t.Context(), host+"/some/image"+test.identifier)
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if err == nil && (desc.Digest != right || desc.Size != int64(len(body)) || desc.MediaType != ocispec.MediaTypeImageManifest) {
				t.Errorf("%+v", desc)
			}
		})
	}
}
