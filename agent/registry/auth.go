package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	maxTokenSize = 1 << 20 // bytes of a token server's answer
	// A token is renewed this long before it expires, and believed for at least minTokenLife.
	tokenSlack   = 10 * time.Second
	minTokenLife = 60 * time.Second // the distribution specification's default
)

// Credentials are what a registry or its token server asks for: a user and password, or one of the tokens.
type Credentials struct {
	Username, Password string
	IdentityToken      string // exchanged for tokens by OAuth 2
	RegistryToken      string // sent as it is
}

// authorizer knows what to send in Authorization, per repository. It asks for nothing in advance: the first request goes
// out bare, because many registries need no credentials and a round trip is what a cold start consists of.
type authorizer struct {
	cfg  Config
	http *http.Client

	mu      sync.Mutex
	creds   map[string]Credentials // by host, from SetCredentials
	entries map[string]*authEntry  // by Repository.String
}

// authEntry is what is known for one repository. It is locked while a token is fetched, so that requests that need one
// share it; who waits for that does so no longer than its context.
type authEntry struct {
	locked    chan struct{} // holds one element while locked
	header    string
	expires   time.Time // zero: never
	challenge challenge
	from      *pluginAnswer // of the credentials that header is made with, nil if they are no plugin's
}

func (e *authEntry) lock(ctx context.Context, host string) error {
	select {
	case e.locked <- struct{}{}:
		return nil
	case <-ctx.Done():
		return transportError(ctx, host, ctx.Err())
	}
}

func (e *authEntry) unlock() { <-e.locked }

func newAuthorizer(cfg Config, client *http.Client) *authorizer {
	return &authorizer{cfg: cfg, http: client, creds: map[string]Credentials{}, entries: map[string]*authEntry{}}
}

// SetCredentials makes the Client use cred for a registry host from now on, in place of the Keychain; the zero
// Credentials undo that. Tokens made with other credentials are forgotten.
func (c *Client) SetCredentials(host string, cred Credentials) {
	a, key := c.auth, canonicalHost(host)
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.creds[key]
	if cred == (Credentials{}) {
		delete(a.creds, key)
	} else {
		a.creds[key] = cred
	}
	if old == cred {
		return
	}
	for repo := range a.entries {
		if strings.HasPrefix(repo, key+"/") {
			delete(a.entries, repo)
		}
	}
	c.redirects.forget(key + "/")
}

// canonicalHost maps the names that container engines use for Docker Hub to the one of go-containerregistry.
func canonicalHost(host string) string {
	switch host {
	case "docker.io", "registry-1.docker.io", "registry.docker.io":
		return name.DefaultRegistry
	}
	return host
}

func (a *authorizer) entry(r *Repository) *authEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[r.String()]
	if e == nil {
		e = &authEntry{locked: make(chan struct{}, 1)}
		a.entries[r.String()] = e
	}
	return e
}

// header returns the Authorization for a request, empty if none is known to be needed. It renews a token that is about
// to expire.
func (a *authorizer) header(ctx context.Context, r *Repository) (string, error) {
	e := a.entry(r)
	if err := e.lock(ctx, r.host); err != nil {
		return "", err
	}
	defer e.unlock()
	if e.expires.IsZero() || time.Now().Before(e.expires) {
		return e.header, nil
	}
	err := a.renew(ctx, r, e)
	if err != nil && e.from != nil && e.basic() && ctx.Err() == nil { // the plugin fails: what it gave before may do
		e.expires, err = time.Now().Add(pluginFailureLife), nil
	}
	return e.header, err
}

func (e *authEntry) basic() bool { return strings.HasPrefix(e.header, "Basic ") }

// challenged answers a 401 to a request that was sent with the header sent. It returns the header to try again with, or
// ErrDenied if there is none.
func (a *authorizer) challenged(ctx context.Context, r *Repository, sent string, h http.Header) (string, error) {
	e := a.entry(r)
	if err := e.lock(ctx, r.host); err != nil {
		return "", err
	}
	defer e.unlock()
	if e.header != sent && e.header != "" { // another request was faster
		return e.header, nil
	}
	ch, ok := pickChallenge(h.Values("WWW-Authenticate"))
	if !ok {
		return "", fmt.Errorf("%s asks for authentication in no known way: %w", r.host, blockfmt.ErrDenied)
	}
	e.challenge = ch
	if sent != "" && e.basic() {
		e.from.forget()
	}
	if err := a.renew(ctx, r, e); err != nil {
		return "", err
	}
	if e.header == sent && e.challenge.scheme == "basic" {
		return "", fmt.Errorf("%s refuses the credentials for %s: %w", r.host, r.path, blockfmt.ErrDenied)
	}
	return e.header, nil
}

// outdated says whether a header that was just refused is made of credentials that a plugin may have replaced.
func (a *authorizer) outdated(ctx context.Context, r *Repository, sent string) bool {
	e := a.entry(r)
	if e.lock(ctx, r.host) != nil {
		return false
	}
	defer e.unlock()
	return e.basic() && (e.header != sent || e.from.mayForget())
}

// renew sets e.header from e.challenge and the credentials; e is locked. If a token server refuses those of a plugin, the plugin
// is asked again.
func (a *authorizer) renew(ctx context.Context, r *Repository, e *authEntry) error {
	cred, from, err := a.credentials(ctx, r)
	if err != nil {
		return err
	}
	err = a.use(ctx, r, e, cred, from)
	if !errors.Is(err, blockfmt.ErrDenied) || !from.forget() {
		return err
	}
	if cred, from, err = a.credentials(ctx, r); err != nil {
		return err
	}
	return a.use(ctx, r, e, cred, from)
}

// use sets e.header from e.challenge and cred; e is locked.
func (a *authorizer) use(ctx context.Context, r *Repository, e *authEntry, cred Credentials, from *pluginAnswer) error {
	switch {
	case cred.RegistryToken != "":
		e.header, e.expires = "Bearer "+cred.RegistryToken, time.Time{}
	case e.challenge.scheme == "basic":
		if cred.Username == "" {
			return fmt.Errorf("no credentials for %s: %w", r, blockfmt.ErrDenied)
		}
		e.header, e.expires = basicHeader(cred), from.expires()
	default:
		tok, err := a.exchange(ctx, r, e.challenge, cred)
		if err != nil {
			return err
		}
		life := max(time.Duration(tok.ExpiresIn)*time.Second, minTokenLife)
		e.header, e.expires = "Bearer "+tok.value(), time.Now().Add(life-tokenSlack)
	}
	e.from = from
	return nil
}

func basicHeader(cred Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(cred.Username+":"+cred.Password))
}

// credentials returns those for a repository, and the plugin's answer that they are from. Those that were set come first, then the
// Keychain's, then the plugins'.
func (a *authorizer) credentials(ctx context.Context, r *Repository) (Credentials, *pluginAnswer, error) {
	a.mu.Lock()
	cred, ok := a.creds[r.host]
	a.mu.Unlock()
	if ok {
		return cred, nil, nil
	}
	cred, err := a.fromKeychain(ctx, r)
	if cred != (Credentials{}) {
		return cred, nil, nil
	}
	cred, from, pluginErr := a.cfg.Plugins.credentials(ctx, r.host, r.path)
	if from != nil {
		return cred, from, nil
	}
	if pluginErr != nil && ctx.Err() != nil {
		return cred, nil, transportError(ctx, r.host, pluginErr)
	}
	if pluginErr != nil {
		return cred, nil, fmt.Errorf("credentials for %s: %w", r, both(err, pluginErr))
	}
	if err != nil {
		return cred, nil, fmt.Errorf("credentials for %s: %w: %w", r, err, blockfmt.ErrDenied)
	}
	return cred, nil, nil
}

func (a *authorizer) fromKeychain(ctx context.Context, r *Repository) (Credentials, error) {
	auth, err := authn.Resolve(ctx, a.cfg.Keychain, r.resource)
	if err != nil {
		return Credentials{}, err
	}
	ac, err := authn.Authorization(ctx, auth)
	if err != nil {
		return Credentials{}, err
	}
	cred := Credentials{Username: ac.Username, Password: ac.Password, IdentityToken: ac.IdentityToken, RegistryToken: ac.RegistryToken}
	if cred.Username == "" && ac.Auth != "" {
		if text, err := base64.StdEncoding.DecodeString(ac.Auth); err == nil {
			cred.Username, cred.Password, _ = strings.Cut(string(text), ":")
		}
	}
	return cred, nil
}

type token struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"` // seconds
}

func (t token) value() string {
	if t.Token != "" {
		return t.Token
	}
	return t.AccessToken
}

// exchange gets a bearer token from the token server that the challenge names.
func (a *authorizer) exchange(ctx context.Context, r *Repository, ch challenge, cred Credentials) (token, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.StallTimeout,
		fmt.Errorf("no answer of the token server for %s within %v: %w", r, a.cfg.StallTimeout, blockfmt.ErrTransient))
	defer cancel()
	req, err := tokenRequest(sentBy(ctx, r.host), r, ch, cred)
	if err != nil {
		return token{}, fmt.Errorf("%w: %w", err, blockfmt.ErrDenied)
	}
	req.Header.Set("User-Agent", a.cfg.UserAgent)
	resp, err := a.http.Do(req)
	if err != nil {
		return token{}, transportError(ctx, req.URL.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return token{}, fmt.Errorf("token server %s for %s: %w", req.URL.Host, r, statusError(resp))
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenSize))
	if err != nil {
		return token{}, transportError(ctx, req.URL.Host, err)
	}
	var t token
	if err := json.Unmarshal(text, &t); err != nil || t.value() == "" || strings.ContainsAny(t.value(), "\r\n") {
		return token{}, fmt.Errorf("token server %s for %s: no token in the answer: %w", req.URL.Host, r, blockfmt.ErrDenied)
	}
	return t, nil
}

func tokenRequest(ctx context.Context, r *Repository, ch challenge, cred Credentials) (*http.Request, error) {
	u, err := url.Parse(ch.params["realm"])
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%s names no token server", r.host)
	}
	if want := r.client.scheme(r.host); u.Scheme != "https" && u.Scheme != want {
		return nil, fmt.Errorf("%s is spoken to by %s and names the token server %s://%s", r.host, want, u.Scheme, u.Host)
	}
	scope := ch.params["scope"]
	if scope == "" {
		scope = "repository:" + r.path + ":pull"
	}
	q := url.Values{"scope": {scope}}
	if s := ch.params["service"]; s != "" {
		q.Set("service", s)
	}
	if cred.IdentityToken != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", cred.IdentityToken)
		q.Set("client_id", "xylem")
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(q.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	for k, v := range u.Query() {
		if !q.Has(k) {
			q[k] = v
		}
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && cred.Username != "" {
		req.Header.Set("Authorization", basicHeader(cred))
	}
	return req, err
}
