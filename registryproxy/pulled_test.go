package registryproxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

// Who gets a manifest is told, and by which name; who only asks whether it is there is not.
func TestPulledManifests(t *testing.T) {
	var pulls []registryproxy.Pull
	w := newWorld(t, func(c *registryproxy.Config) { c.Pulled = func(p registryproxy.Pull) { pulls = append(pulls, p) } })
	body := []byte(`{"schemaVersion":2}`)
	d := push(t, w.up.hosts[host], "app", "v1", ocispec.MediaTypeImageManifest, body)
	w.do(http.MethodHead, "/v2/app/manifests/v1?ns="+host)
	w.get("/v2/app/manifests/v1?ns="+host, `If-None-Match: "`+d.String()+`"`)
	w.get("/v2/app/manifests/none?ns=" + host)
	if len(pulls) != 0 {
		t.Errorf("pulls of a manifest that nobody got: %+v", pulls)
	}
	w.get("/v2/app/manifests/v1?ns=" + host)
	w.get("/v2/app/manifests/" + d.String() + "?ns=" + host)
	if len(pulls) != 2 || pulls[0].Ref != "v1" || pulls[1].Ref != d.String() {
		t.Fatalf("%+v", pulls)
	}
	for _, p := range pulls {
		if p.Host != host || p.Repo != "app" || p.Digest != d || !bytes.Equal(p.Manifest.Body, body) || p.Manifest.MediaType != ocispec.MediaTypeImageManifest {
			t.Errorf("%+v", p)
		}
	}
}

// ownUpstream notes in whose name registries are asked.
type ownUpstream struct {
	registryproxy.Upstream
	mu  sync.Mutex
	own []bool
}

func (u *ownUpstream) Do(ctx context.Context, req registryproxy.Request) (*registryproxy.Response, error) {
	u.mu.Lock()
	u.own = append(u.own, req.Own)
	u.mu.Unlock()
	return u.Upstream.Do(ctx, req)
}

// A blob that the node wants itself is asked for in its name.
func TestOwnDownloads(t *testing.T) {
	w := newWorld(t)
	body := noise(1, 3*blockfmt.BlockSize)
	d := push(t, w.up.hosts[host], "app", "", "", body)
	up := &ownUpstream{Upstream: w.up}
	s := registryproxy.NewDownloads(registryproxy.Streamed(up), w.disk, slog.New(slog.DiscardHandler))
	defer s.Close()
	content, err := s.Open(t.Context(), registryproxy.Blob{Digest: d, Size: int64(len(body)), Host: host, Repo: "app", Own: true})
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if _, err := content.Ready(t.Context(), int64(len(body))-1); err != nil {
		t.Error(err)
	}
	if !slices.Equal(up.own, []bool{true}) {
		t.Errorf("asked in the node's name: %v", up.own)
	}
}

// Who joins a blob gets it while it comes for others and when it is kept, and has nothing fetched otherwise.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := noise(2, 2*blockfmt.BlockSize)
		b := registryproxy.Blob{Digest: digest.FromBytes(body), Size: int64(len(body)), Host: host}
		proceed, fetches := make(chan error), 0
		source := sourceFunc(func(_ context.Context, _ registryproxy.Fetch, sink registryproxy.Sink) ([]string, error) {
			fetches++
			off, n := b.Block(0)
			if err := sink.Write(0, body[off:off+n]); err != nil {
				return nil, err
			}
			if err := <-proceed; err != nil {
				return nil, err
			}
			off, n = b.Block(1)
			return []string{host}, sink.Write(1, body[off:off+n])
		})
		s := registryproxy.NewDownloads(source, &disk{dir: t.TempDir()}, slog.New(slog.DiscardHandler))
		defer s.Close()
		absent := func(what string, size int64) {
			t.Helper()
			if _, err := s.Join(b.Digest, size); !errors.Is(err, blockfmt.ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		open := func() {
			t.Helper()
			content, err := s.Open(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			t.Cleanup(func() { content.Close() })
		}
		absent("nobody wants it", b.Size)
		open()
		absent("another size", b.Size+1)
		proceed <- errors.New("the registry is away")
		synctest.Wait()
		absent("what came of a failed download", b.Size)
		open()
		joined, err := s.Join(b.Digest, b.Size)
		if err != nil {
			t.Fatal(err)
		}
		defer joined.Close()
		proceed <- nil
		for off := int64(0); off < b.Size; {
			n, err := joined.Ready(t.Context(), off)
			if err != nil {
				t.Fatal(err)
			}
			off += n
		}
		if got, err := io.ReadAll(io.NewSectionReader(joined, 0, b.Size)); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes of a blob that comes for others: %v", len(got), err)
		}
		synctest.Wait()
		kept, err := s.Join(b.Digest, b.Size)
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Close()
		if got, err := io.ReadAll(io.NewSectionReader(kept, 0, b.Size)); err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes of a blob that is kept: %v", len(got), err)
		}
		if fetches != 2 {
			t.Errorf("%d fetches, want those of the two who opened it", fetches)
		}
	})
}
