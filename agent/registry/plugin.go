package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	// A plugin that failed is not asked again for the same thing for this long, so that many reads are not as many processes.
	pluginFailureLife = 5 * time.Second
	// Credentials that a registry refuses are asked for anew if they are at least this old: a plugin that insists on wrong ones
	// is run that often, not once for each request.
	pluginRefusalAge = 10 * time.Second
	// Credentials that are not to be cached serve one repository for this long, about a pull.
	pluginPullLife = time.Minute
)

// Plugins are credential provider plugins as the kubelet has them: programs that are asked for credentials of an image. They
// are run one at a time for what an answer covers, and their answers kept as long as they say. Safe for concurrent use. Close
// it when done; the zero value has no plugins.
type Plugins struct {
	plugins []*plugin
	ctx     context.Context // of the processes
	stop    context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // processes; none is added once closed
}

// OpenPlugins reads a CredentialProviderConfig, a file in YAML or JSON, or a directory of them as the kubelet reads it, and
// looks for its programs in binDir. It runs none of them.
func OpenPlugins(configPath, binDir string, log *slog.Logger) (*Plugins, error) {
	providers, err := readProviders(configPath, log)
	if err != nil {
		return nil, err
	}
	p := &Plugins{}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, provider := range providers {
		command, err := provider.command(binDir)
		if err != nil {
			p.Close()
			return nil, err
		}
		plugin := newPlugin(p, provider, log)
		plugin.run = command.run
		p.plugins = append(p.plugins, plugin)
	}
	return p, nil
}

func newPlugin(owner *Plugins, p provider, log *slog.Logger) *plugin {
	return &plugin{
		name: p.Name, images: p.images, defaultLife: p.defaultLife, log: log, owner: owner,
		answers: map[pluginKey]*pluginAnswer{}, flights: map[pluginKey]*pluginFlight{},
	}
}

// Close ends the plugins that are running and waits for them.
func (p *Plugins) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	if p.stop != nil {
		p.stop()
	}
	p.running.Wait()
}

// start runs f until Close, unless that was called.
func (p *Plugins) start(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.running.Go(f)
	}
	return !p.closed
}

// Keychain returns one that asks first, and the plugins for repositories for which that has no credentials. It is for registry clients of
// others; it must not be used after Close.
func (p *Plugins) Keychain(first authn.Keychain) authn.Keychain { return pluginKeychain{p, first} }

type pluginKeychain struct {
	plugins *Plugins
	first   authn.Keychain
}

// Resolve implements authn.Keychain.
func (k pluginKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain.
func (k pluginKeychain) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	auth, err := authn.Resolve(ctx, k.first, r)
	if err == nil {
		var config *authn.AuthConfig
		if config, err = authn.Authorization(ctx, auth); err == nil && *config != (authn.AuthConfig{}) {
			return auth, nil
		}
	}
	host := r.RegistryStr()
	path, _ := strings.CutPrefix(r.String(), host+"/")
	cred, from, pluginErr := k.plugins.credentials(ctx, host, path)
	if from != nil {
		return authn.FromConfig(authn.AuthConfig{Username: cred.Username, Password: cred.Password}), nil
	}
	return authn.Anonymous, both(err, pluginErr)
}

// PluginError is that of a plugin, for which no registry is to blame. It wraps ErrTransient if the plugin timed out or crashed, ErrUnsupported
// if it does not keep to the protocol. That there are no credentials is no error but an answer.
type PluginError struct {
	Plugin string // name
	err    error
}

func (e *PluginError) Error() string { return e.err.Error() }

func (e *PluginError) Unwrap() error { return e.err }

func newPluginError(plugin string, err error) error {
	if !hasKind(err) {
		err = fmt.Errorf("%w: %w", err, blockfmt.ErrTransient)
	}
	return &PluginError{plugin, err}
}

// credentials asks the plugins for a repository, in their order, until one has credentials. It returns the answer that they
// are from, nil if nobody has any. An error means that a plugin failed and no other has any.
func (p *Plugins) credentials(ctx context.Context, host, path string) (Credentials, *pluginAnswer, error) {
	var failed error
	image := imageName(host, path)
	for _, plugin := range p.plugins {
		if !plugin.matches(image) {
			continue
		}
		answer, err := plugin.ask(ctx, image)
		if err != nil {
			failed = both(failed, err)
			continue
		}
		if cred, ok := answer.credentials(image); ok {
			return cred, answer, nil
		}
	}
	return Credentials{}, nil, failed
}

// imageName is how the kubelet names a repository to its plugins.
func imageName(host, path string) string {
	if host == name.DefaultRegistry {
		host = "docker.io"
	}
	return host + "/" + path
}

// plugin is a program and what it answered.
type plugin struct {
	name        string
	images      []imagePattern
	defaultLife time.Duration
	run         func(ctx context.Context, image string) (*pluginResponse, error)
	log         *slog.Logger
	owner       *Plugins

	mu      sync.Mutex
	scope   pluginScope // of the last answer; before there is one, of an image
	answers map[pluginKey]*pluginAnswer
	flights map[pluginKey]*pluginFlight
}

// pluginScope is what an answer is good for: the protocol's cacheKeyType.
type pluginScope string

const (
	scopeImage    pluginScope = "Image"
	scopeRegistry pluginScope = "Registry"
	scopeGlobal   pluginScope = "Global"
)

// pluginKey is an image, a registry, or everything.
type pluginKey struct {
	scope pluginScope
	of    string
}

// key returns what an answer of this scope about an image covers.
func (s pluginScope) key(image string) pluginKey {
	switch s {
	case scopeRegistry:
		host, _, _ := strings.Cut(image, "/")
		return pluginKey{s, host}
	case scopeGlobal:
		return pluginKey{s, ""}
	}
	return pluginKey{scopeImage, image}
}

// pluginFlight is a process that somebody waits for. What it answers is there once done is closed.
type pluginFlight struct {
	done   chan struct{}
	answer *pluginAnswer
}

// pluginAnswer is what a plugin said, or that it failed. It does not change.
type pluginAnswer struct {
	by    *plugin
	key   pluginKey
	auth  []pluginAuth // longest pattern first
	at    time.Time
	until time.Time // the same as at: not to be cached
	err   error
}

func (a *pluginAnswer) covers(image string) bool { return a.key == a.key.scope.key(image) }

func (a *pluginAnswer) credentials(image string) (Credentials, bool) {
	for _, auth := range a.auth {
		if auth.pattern.matches(image) {
			return auth.cred, true
		}
	}
	return Credentials{}, false
}

// expires returns until when the credentials are used without asking again.
func (a *pluginAnswer) expires() time.Time {
	switch {
	case a == nil:
		return time.Time{}
	case a.until.After(a.at):
		return a.until
	}
	return a.at.Add(pluginPullLife)
}

// mayForget says whether the answer is old enough to be asked for again when a registry refuses it.
func (a *pluginAnswer) mayForget() bool { return a != nil && time.Since(a.at) >= pluginRefusalAge }

// forget drops the answer if it mayForget, so that the plugin is asked again.
func (a *pluginAnswer) forget() bool {
	if !a.mayForget() {
		return false
	}
	a.by.mu.Lock()
	defer a.by.mu.Unlock()
	if a.by.answers[a.key] == a {
		delete(a.by.answers, a.key)
	}
	return true
}

func (p *plugin) matches(image string) bool {
	for _, pattern := range p.images {
		if pattern.matches(image) {
			return true
		}
	}
	return false
}

// ask returns the answer that covers an image: one that is kept, that of a process which runs already, or a new one. Processes
// go on when whoever waits for them gives up.
func (p *plugin) ask(ctx context.Context, image string) (*pluginAnswer, error) {
	for {
		p.mu.Lock()
		if a := p.kept(image); a != nil {
			p.mu.Unlock()
			return a, a.err
		}
		f := p.flight(image)
		p.mu.Unlock()
		select {
		case <-f.done:
			if f.answer.covers(image) {
				return f.answer, f.answer.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// kept returns an answer that is still good, else a failure of just now; p is locked.
func (p *plugin) kept(image string) (failure *pluginAnswer) {
	for _, scope := range []pluginScope{scopeImage, scopeRegistry, scopeGlobal} {
		a := p.answers[scope.key(image)]
		switch {
		case a == nil || !time.Now().Before(a.until):
		case a.err == nil:
			return a
		default:
			failure = a
		}
	}
	return failure
}

// flight returns the process that asks for what an image needs, and starts it if it does not run; p is locked. What will be
// covered is taken from the answer before.
func (p *plugin) flight(image string) *pluginFlight {
	key := p.scope.key(image)
	f := p.flights[key]
	if f != nil {
		return f
	}
	f = &pluginFlight{done: make(chan struct{})}
	if p.owner.start(func() { p.fly(f, key, image) }) {
		p.flights[key] = f
	} else {
		f.answer = &pluginAnswer{by: p, key: key, err: newPluginError(p.name, errPluginsClosed)}
		close(f.done)
	}
	return f
}

var errPluginsClosed = errors.New("credential provider plugins are closed")

func (p *plugin) fly(f *pluginFlight, key pluginKey, image string) {
	response, err := p.run(p.owner.ctx, image)
	now := time.Now()
	a := &pluginAnswer{by: p, key: key, at: now, until: now.Add(pluginFailureLife)}
	if err == nil {
		a.key, a.auth, a.until = response.scope.key(image), response.auth, now.Add(response.lifeOr(p.defaultLife))
	} else {
		a.err = newPluginError(p.name, err)
		if p.owner.ctx.Err() == nil {
			p.log.Warn("credential provider plugin failed", "plugin", p.name, "image", image, "error", a.err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f.answer = a
	close(f.done)
	delete(p.flights, key)
	if err == nil {
		p.scope = a.key.scope
	}
	if len(p.answers) >= maxRemember {
		clear(p.answers)
	}
	p.answers[a.key] = a
}
