// Package function keeps what functions there are: their versions and aliases, in the scheduler's store.
//
// It stands beside the way of the data:
//
//	user --create--> Registry --store.Store--> etcd
//	invocation --Lookup--> Registry (memory) --api.Function--> package invoke
//
// A function is a head (its newest version, its aliases) and versions that never change. Creating a version resolves the image's tag to a
// digest and has the cluster convert the image, so that every later start is lazy and runs the same bytes.
package function

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// Errors that callers act on.
var (
	// ErrNotFound says that there is no such function, version or alias.
	ErrNotFound = errors.New("no such function")
	// ErrExists says that there is one of that name already.
	ErrExists = errors.New("function exists")
	// ErrInvalid says that a function cannot be as its user says.
	ErrInvalid = errors.New("invalid function")
	// ErrBusy says that somebody else changed the function at the same time.
	ErrBusy = errors.New("function is being changed")
	// ErrNotReady says that the store has not been read yet.
	ErrNotReady = errors.New("functions are not known yet")
)

// MaxVersions bounds the versions that a function keeps. The oldest that no alias names goes when a new one is made.
const MaxVersions = 50

// maxAliases bounds the aliases of a function.
const maxAliases = 100

// A Resolver says what an image's reference names now, and has it converted. Its errors wrap ErrInvalid if the image cannot run.
type Resolver interface {
	Resolve(ctx context.Context, image string) (api.ImageAnswer, error)
}

// Registry keeps functions. It is safe for concurrent use.
type Registry struct {
	store    store.Store
	resolver Resolver
	log      *slog.Logger
	known    atomic.Pointer[snapshot] // nil before the first read of the store
}

// New returns a Registry that knows nothing before Run.
func New(s store.Store, r Resolver, log *slog.Logger) *Registry {
	return &Registry{store: s, resolver: r, log: log}
}

// head is a function without its versions.
type head struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Latest    int            `json:"latest"`
	Last      int            `json:"last"` // highest number that a version has had
	Aliases   map[string]int `json:"aliases,omitempty"`
	Updated   time.Time      `json:"updated"`
}

// Create makes a function with its first version.
func (r *Registry) Create(ctx context.Context, spec api.FunctionSpec) (api.Function, error) {
	return r.publish(ctx, spec, func(h *head, exists bool) error {
		if exists {
			return fmt.Errorf("%w: %s/%s: update or delete it", ErrExists, h.Namespace, h.Name)
		}
		return nil
	})
}

// Update makes a new version, which is the newest from now on. Running invocations end as they began.
func (r *Registry) Update(ctx context.Context, spec api.FunctionSpec) (api.Function, error) {
	return r.publish(ctx, spec, func(h *head, exists bool) error {
		if !exists {
			return fmt.Errorf("%w: %s/%s", ErrNotFound, h.Namespace, h.Name)
		}
		return nil
	})
}

func (r *Registry) publish(ctx context.Context, spec api.FunctionSpec, may func(h *head, exists bool) error) (f api.Function, err error) {
	if spec, err = spec.Complete(); err != nil {
		return f, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	e, err := r.read(ctx, spec.Namespace, spec.Name)
	if err != nil {
		return f, err
	}
	if err := may(&e.head, e.exists()); err != nil {
		return f, err
	}
	image, err := r.resolver.Resolve(ctx, spec.Image)
	if err != nil {
		return f, err
	}
	if len(spec.Command) == 0 && len(spec.Args) == 0 && len(image.Entrypoint) == 0 {
		return f, fmt.Errorf("%w: image %s has neither entrypoint nor command: say which program to run", ErrInvalid, spec.Image)
	}
	now := time.Now().UTC()
	e.head.Last++
	e.head.Latest, e.head.Updated = e.head.Last, now
	f = api.Function{FunctionSpec: spec, Version: e.head.Latest, Digest: image.Digest, Created: now}
	tx := e.write()
	tx.Put = append(tx.Put, item(versionKey(f.Namespace, f.Name, f.Version), f))
	tx.Delete = e.surplus()
	if err := r.commit(ctx, tx); err != nil {
		return f, err
	}
	r.log.Info("function published", "function", f.ID(), "image", f.Image, "digest", f.Digest, "converted", image.Converted)
	return f, nil
}

// Delete removes a function with all its versions.
func (r *Registry) Delete(ctx context.Context, namespace, name string) error {
	e, err := r.existing(ctx, namespace, name)
	if err != nil {
		return err
	}
	tx := e.condition()
	tx.Delete = []string{headKey(namespace, name)}
	for version := range e.versions {
		tx.Delete = append(tx.Delete, versionKey(namespace, name, version))
	}
	if err := r.commit(ctx, tx); err != nil {
		return err
	}
	r.log.Info("function deleted", "function", namespace+"/"+name)
	return nil
}

// SetAlias makes an alias name a version.
func (r *Registry) SetAlias(ctx context.Context, namespace, name, alias string, version int) error {
	if err := validAlias(alias); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	e, err := r.existing(ctx, namespace, name)
	if err != nil {
		return err
	}
	if _, ok := e.versions[version]; !ok {
		return fmt.Errorf("%w: %s/%s has no version %d", ErrNotFound, namespace, name, version)
	}
	if _, ok := e.head.Aliases[alias]; !ok && len(e.head.Aliases) >= maxAliases {
		return fmt.Errorf("%w: %s/%s has %d aliases, at most that", ErrInvalid, namespace, name, maxAliases)
	}
	if e.head.Aliases == nil {
		e.head.Aliases = map[string]int{}
	}
	e.head.Aliases[alias] = version
	return r.commit(ctx, e.write())
}

// validAlias returns an error for what could be taken for a version.
func validAlias(alias string) error {
	if _, err := strconv.Atoi(alias); err == nil {
		return fmt.Errorf("alias %.80q is a number, as versions are", alias)
	}
	return api.ValidName("alias", alias)
}

// DeleteAlias removes an alias.
func (r *Registry) DeleteAlias(ctx context.Context, namespace, name, alias string) error {
	e, err := r.existing(ctx, namespace, name)
	if err != nil {
		return err
	}
	if _, ok := e.head.Aliases[alias]; !ok {
		return fmt.Errorf("%w: %s/%s has no alias %.80q", ErrNotFound, namespace, name, alias)
	}
	delete(e.head.Aliases, alias)
	return r.commit(ctx, e.write())
}

// entry is a function in the store.
type entry struct {
	head     head
	revision int64 // of the head; 0: there is none
	versions map[int]api.Function
}

func (e entry) exists() bool { return e.revision != 0 }

// condition returns a transaction that takes place if nobody has changed the function.
func (e entry) condition() store.Tx {
	return store.Tx{If: []store.Condition{{Key: headKey(e.head.Namespace, e.head.Name), Revision: e.revision}}}
}

// write returns one that writes the head.
func (e entry) write() store.Tx {
	tx := e.condition()
	tx.Put = []store.Item{item(headKey(e.head.Namespace, e.head.Name), e.head)}
	return tx
}

// surplus returns the keys of versions that a new one takes the place of.
func (e entry) surplus() (keys []string) {
	var old []int
	for version := range e.versions {
		named := false
		for _, v := range e.head.Aliases {
			named = named || v == version
		}
		if !named {
			old = append(old, version)
		}
	}
	slices.Sort(old)
	for _, version := range old[:max(0, min(len(old), len(e.versions)+1-MaxVersions))] {
		keys = append(keys, versionKey(e.head.Namespace, e.head.Name, version))
	}
	return keys
}

func (r *Registry) existing(ctx context.Context, namespace, name string) (entry, error) {
	e, err := r.read(ctx, namespace, name)
	if err == nil && !e.exists() {
		err = fmt.Errorf("%w: %.80s/%.80s", ErrNotFound, namespace, name)
	}
	return e, err
}

func (r *Registry) read(ctx context.Context, namespace, name string) (entry, error) {
	items, err := r.store.Read(ctx, headKey(namespace, name))
	if err != nil {
		return entry{}, err
	}
	s, err := parse(items)
	if err != nil {
		return entry{}, err
	}
	if e, ok := s[id{namespace, name}]; ok {
		return *e, nil
	}
	return entry{head: head{Namespace: namespace, Name: name}}, nil
}

func (r *Registry) commit(ctx context.Context, tx store.Tx) error {
	_, err := r.store.Write(ctx, tx)
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("%w at the same time: try again", ErrBusy)
	}
	return err
}
