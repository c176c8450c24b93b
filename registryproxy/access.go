package registryproxy

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// credential is the keyed hash of a client's Authorization: what is remembered of it.
type credential [sha256.Size]byte

// grantKey: the registry accepted these credentials for this repository.
type grantKey struct {
	Host, Repo string
	Credential credential
}

// memberKey: the repository has a manifest or blob.
type memberKey struct {
	Host, Repo, Kind string
	Digest           digest.Digest
}

// member is what is known of a manifest or blob in a repository.
type member struct {
	MediaType string
	Size      int64
}

// access knows who may read what, from what registries answered.
type access struct {
	up      Upstream
	ttl     time.Duration // of a grant
	offline time.Duration // more, while the registry does not answer
	key     []byte        // of the hashes of credentials

	grants     facts[grantKey, struct{}]
	members    facts[memberKey, member]
	challenges facts[string, string]   // how hosts ask for a user and password
	down       facts[string, struct{}] // hosts that did not answer
	public     facts[[2]string, bool]  // whether a repository was found to be public, by host and name
	asking     flights[member]
	background *background
}

const (
	// downFor is how long a registry that did not answer is not asked again for what is at hand.
	downFor = 10 * time.Second
	// patience is how long a registry is waited for where there is an answer at hand.
	patience = 3 * time.Second
	// loginPatience is how long where that is to ask for credentials: one that is slow may give the thing to everybody.
	loginPatience = 10 * time.Second
)

func newAccess(cfg Config) *access {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return &access{up: cfg.Upstream, ttl: cfg.GrantTTL, offline: cfg.OfflineFor, key: key, background: newBackground()}
}

// hash returns what is remembered of an Authorization.
func (a *access) hash(authorization string) credential {
	m := hmac.New(sha256.New, a.key)
	m.Write([]byte(authorization))
	return credential(m.Sum(nil))
}

func (a *access) grantKey(t target) grantKey {
	return grantKey{t.host, t.repo, a.hash(t.authorization)}
}

// note remembers that a client's request was answered.
func (a *access) note(t target, kind string, d digest.Digest, m member) {
	a.grants.set(a.grantKey(t), struct{}{})
	a.members.set(memberKey{t.host, t.repo, kind, d}, m)
	if t.authorization != "" {
		a.lookIfPublic(t, d)
	}
}

// granted says whether the client's credentials were accepted for its repository within the time given, or none are needed.
func (a *access) granted(t target, within time.Duration) bool {
	for _, credential := range []credential{a.hash(t.authorization), a.hash("")} {
		if g, ok := a.grants.get(grantKey{t.host, t.repo, credential}); ok && g.age() < within {
			return true
		}
	}
	return false
}

// lookIfPublic finds out, in the background and once in a while, whether the registry gives a repository to everybody. Most
// registries want a token even of those who have no credentials, and each token is another one: without this, what
// everybody may read could be read by nobody while the registry is down.
func (a *access) lookIfPublic(t target, d digest.Digest) {
	key := [2]string{t.host, t.repo}
	if known, ok := a.public.get(key); ok && known.age() < a.ttl {
		return
	}
	a.public.set(key, false)
	t.authorization = ""
	a.background.run(func(ctx context.Context) {
		req := t.request(http.MethodHead, d.String())
		req.Anonymous = true
		resp, err := a.up.Do(ctx, req)
		if err != nil {
			return
		}
		_ = resp.Body.Close() // of a HEAD
		a.public.set(key, resp.Status == http.StatusOK)
		if resp.Status == http.StatusOK {
			a.grants.set(a.grantKey(t), struct{}{})
		}
	})
}

// refused forgets what the registry has taken back.
func (a *access) refused(t target, resp *Response) {
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		a.grants.remove(a.grantKey(t))
		a.heard(t, resp)
	}
}

// stat returns what t's repository has under a digest, if the client may have it. The registry is asked unless it has
// answered not long ago; an error is its answer, or says why there is none.
func (a *access) stat(ctx context.Context, t target, d digest.Digest) (member, error) {
	m, known := a.members.get(memberKey{t.host, t.repo, t.kind, d})
	if known && a.granted(t, a.ttl) {
		return m.value, nil
	}
	stale := known && a.granted(t, a.ttl+a.offline)
	fresh := m.value
	err := a.unlessDown(ctx, t.host, a.waitFor(t, stale), func(ctx context.Context) (err error) {
		fresh, err = a.ask(ctx, t, d)
		return err
	})
	if stale && errors.Is(err, blockfmt.ErrTransient) {
		return m.value, nil
	}
	return fresh, err
}

// waitFor returns how long t's registry is waited for, 0 if there is nothing else to answer; stale says that there is an old answer.
func (a *access) waitFor(t target, stale bool) time.Duration {
	switch {
	case stale:
		return patience
	case a.challenge(t) != "":
		return loginPatience
	}
	return 0
}

// unlessDown has a registry asked. Where there is an answer at hand that is good enough if the registry is down, it is not waited
// for longer than within, and not asked if it was down a moment ago: that is ErrTransient. 0 says that there is none.
func (a *access) unlessDown(ctx context.Context, host string, within time.Duration, ask func(context.Context) error) error {
	if within > 0 {
		if d, ok := a.down.get(host); ok && d.age() < downFor {
			return fmt.Errorf("%s did not answer: %w", host, blockfmt.ErrTransient)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, within, fmt.Errorf("%s does not answer within %v: %w", host, within, blockfmt.ErrTransient))
		defer cancel()
	}
	err := ask(ctx)
	switch {
	case errors.Is(err, blockfmt.ErrTransient):
		a.down.set(host, struct{}{})
	case err == nil:
		a.down.remove(host)
	}
	return err
}

// ask has the registry look whether the client may have the thing; clients with the same question share the answer.
func (a *access) ask(ctx context.Context, t target, d digest.Digest) (member, error) {
	k := a.grantKey(t)
	key := strings.Join([]string{t.host, t.repo, t.kind, d.String(), string(k.Credential[:])}, " ")
	return a.asking.do(ctx, a.background, key, func(ctx context.Context) (member, error) { return a.head(ctx, t, d) })
}

func (a *access) head(ctx context.Context, t target, d digest.Digest) (member, error) {
	req := t.request(http.MethodHead, d.String())
	resp, err := a.up.Do(ctx, req)
	if err != nil {
		return member{}, err
	}
	if resp.Status != http.StatusOK {
		a.refused(t, resp)
		return member{}, passOn(resp, req)
	}
	_ = resp.Body.Close() // of a HEAD
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != d.String() {
		return member{}, fmt.Errorf("%s of %s/%s: %s says it is %.80q: %w", d, t.host, t.repo, resp.From, got, blockfmt.ErrCorrupt)
	}
	m := member{MediaType: mediaType(resp), Size: resp.Length}
	if m.Size <= 0 && t.kind == "blobs" && d != d.Algorithm().FromBytes(nil) {
		if m.Size, err = a.probe(ctx, req); err != nil {
			return member{}, err
		}
	}
	a.note(t, t.kind, d, m)
	return m, nil
}

// probe asks for one byte of a blob, because the registry does not say how large it is otherwise.
func (a *access) probe(ctx context.Context, req Request) (size int64, err error) {
	req.Method, req.Range = http.MethodGet, "bytes=0-0"
	resp, err := a.up.Do(ctx, req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	size = resp.Length
	if resp.Status == http.StatusPartialContent {
		_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		if size, err = number(total); err != nil {
			size = 0
		}
	}
	if resp.Status/100 != 2 || size <= 0 {
		return 0, fmt.Errorf("%s of %s/%s: %s does not say how large it is: %w", req.Ref, req.Host, req.Repo, resp.From, blockfmt.ErrUnsupported)
	}
	return size, nil
}

func mediaType(resp *Response) string {
	t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}
