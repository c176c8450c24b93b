package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
)

// Registry says how registries are reached. The zero value is usable.
type Registry struct {
	// PlainHTTP speaks HTTP instead of HTTPS. Loopback addresses are spoken to in HTTP anyway. Default: false.
	PlainHTTP bool
	// Keychain finds credentials. Default: the docker configuration and the credential helpers it names.
	Keychain authn.Keychain
	// Stall is how long a registry may send nothing before the request is given up as ErrTransient. Default: 30 s.
	Stall time.Duration
	// Transport carries requests. Default: go-containerregistry's, with its timeouts and proxy settings.
	Transport http.RoundTripper
}

func (r Registry) parse(ref string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref, r.nameOptions()...)
	if err != nil {
		return nil, fmt.Errorf("reference %.300q: %w", ref, err)
	}
	return parsed, nil
}

func (r Registry) nameOptions() []name.Option {
	if r.PlainHTTP {
		return []name.Option{name.Insecure}
	}
	return nil
}

func (r Registry) withDefaults() Registry {
	if r.Keychain == nil {
		r.Keychain = authn.DefaultKeychain
	}
	if r.Transport == nil {
		r.Transport = remote.DefaultTransport
	}
	if r.Stall <= 0 {
		r.Stall = 30 * time.Second
	}
	return r
}

func (r Registry) options(ctx context.Context) []remote.Option {
	r = r.withDefaults()
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(r.Keychain), remote.WithTransport(boundedManifests{r.Transport}),
		remote.WithUserAgent("xylem"),
	}
}

// boundedManifests refuses manifests and other documents of a registry, which clients read into memory, if they exceed
// blockfmt.MaxManifestSize: by the announced length without reading them, otherwise at the bound.
type boundedManifests struct{ http.RoundTripper }

func (b boundedManifests) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err != nil || req.Method != http.MethodGet || !isDocument(req.URL.Path) {
		return resp, err
	}
	if resp.ContentLength > blockfmt.MaxManifestSize {
		resp.Body.Close()
		return nil, errManifestSize
	}
	resp.Body = &boundedBody{resp.Body, blockfmt.MaxManifestSize}
	return resp, nil
}

func isDocument(path string) bool {
	return strings.Contains(path, "/manifests/") || strings.Contains(path, "/referrers/")
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errManifestSize
	}
	return n, err
}

// repositoryStore is a repository of a registry.
type repositoryStore struct {
	repo   name.Repository
	reg    Registry
	client *http.Client
}

// openRepository returns the repository of a reference, and what to ask it for. It logs in.
func openRepository(ctx context.Context, ref string, reg Registry) (store, string, error) {
	reg = reg.withDefaults()
	parsed, err := reg.parse(ref)
	if err != nil {
		return nil, "", err
	}
	repo := parsed.Context()
	auth, err := authn.Resolve(ctx, reg.Keychain, repo)
	if err != nil {
		if !hasKind(err) {
			err = fmt.Errorf("%w: %w", err, blockfmt.ErrDenied)
		}
		return nil, "", fmt.Errorf("credentials for %s: %w", repo, err)
	}
	t, err := transport.NewWithContext(ctx, repo.Registry, auth, reg.Transport, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, "", fmt.Errorf("registry %s: %w", repo.RegistryStr(), registryKind(err))
	}
	return &repositoryStore{repo, reg, &http.Client{Transport: t}}, parsed.Identifier(), nil
}

func (s *repositoryStore) manifest(ctx context.Context, ref string) ([]byte, ocispec.Descriptor, error) {
	var target name.Reference = s.repo.Tag(ref)
	if strings.Contains(ref, ":") {
		target = s.repo.Digest(ref)
	}
	limited, cancel := context.WithTimeout(ctx, s.reg.Stall)
	defer cancel()
	got, err := remote.Get(target, s.reg.options(limited)...)
	if limited.Err() != nil && ctx.Err() == nil {
		err = stalled(s.reg.Stall)
	}
	if err != nil {
		return nil, ocispec.Descriptor{}, fmt.Errorf("manifest %s: %w", ref, registryKind(err))
	}
	return got.Manifest, ocispec.Descriptor{
		MediaType: string(got.MediaType), Digest: digest.FromBytes(got.Manifest), Size: int64(len(got.Manifest)),
	}, nil
}

func stalled(after time.Duration) error {
	return fmt.Errorf("registry sent nothing for %v: %w", after, blockfmt.ErrTransient)
}

func (s *repositoryStore) blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", s.repo.Scheme(), s.repo.RegistryStr(), s.repo.RepositoryStr(), desc.Digest)
	ctx, cancel := context.WithCancelCause(ctx)
	b := &registryBody{ctx: ctx, cancel: cancel, blob: desc.Digest, stall: s.reg.Stall}
	b.watch = time.AfterFunc(b.stall, func() { cancel(stalled(b.stall)) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, b.fail(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, b.fail(err)
	}
	b.body = resp.Body
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		resp.Body.Close()
		return nil, b.fail(err)
	}
	b.watch.Stop()
	return b, nil
}

// registryBody is the body of a response. It gives up when the registry stalls, and gives errors their kind.
type registryBody struct {
	body   io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	watch  *time.Timer // runs while a Read waits, and cancels ctx
	stall  time.Duration
	blob   digest.Digest
}

func (b *registryBody) Read(p []byte) (int, error) {
	b.watch.Reset(b.stall)
	n, err := b.body.Read(p)
	b.watch.Stop()
	if err != nil && err != io.EOF {
		err = b.describe(err)
	}
	return n, err
}

func (b *registryBody) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// fail ends a request that has no body.
func (b *registryBody) fail(err error) error {
	err = b.describe(err)
	b.watch.Stop()
	b.cancel(nil)
	return err
}

func (b *registryBody) describe(err error) error {
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("blob %s: %w", b.blob, registryKind(err))
}

// registryKind gives an error of the registry client one of blockfmt's kinds.
func registryKind(err error) error {
	if hasKind(err) && !isNetwork(err) {
		return err
	}
	var answer *transport.Error
	switch {
	case !errors.As(err, &answer):
		return fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	case answer.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %w", err, blockfmt.ErrNotFound)
	case answer.StatusCode == http.StatusUnauthorized, answer.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w: %w", err, blockfmt.ErrDenied)
	case answer.StatusCode == http.StatusTooManyRequests, answer.StatusCode >= 500:
		return fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	return fmt.Errorf("%w: %w", err, blockfmt.ErrUnsupported)
}
