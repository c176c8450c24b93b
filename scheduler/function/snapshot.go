package function

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// Prefix begins the keys of functions: Prefix + namespace + "/" + name + "/" for a head, + version for a version. Values are JSON.
const Prefix = "functions/"

func headKey(namespace, name string) string { return Prefix + namespace + "/" + name + "/" }

func versionKey(namespace, name string, version int) string {
	return headKey(namespace, name) + strconv.Itoa(version)
}

// item encodes a head or a version, all of which can be.
func item(key string, value any) store.Item {
	text, err := json.Marshal(value)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", key, err))
	}
	return store.Item{Key: key, Value: text}
}

type id struct{ namespace, name string }

// snapshot is all functions at one moment.
type snapshot map[id]*entry

// parse reads the store's items. Versions without a head are not taken.
func parse(items []store.Item) (snapshot, error) {
	s := snapshot{}
	of := func(key string) (*entry, string, error) {
		part := strings.Split(strings.TrimPrefix(key, Prefix), "/")
		if len(part) != 3 {
			return nil, "", fmt.Errorf("record %s: no key of a function", key)
		}
		at := id{part[0], part[1]}
		if s[at] == nil {
			s[at] = &entry{versions: map[int]api.Function{}}
		}
		return s[at], part[2], nil
	}
	for _, i := range items {
		e, version, err := of(i.Key)
		if err != nil {
			return nil, err
		}
		if version == "" {
			e.revision, err = i.Revision, json.Unmarshal(i.Value, &e.head)
		} else {
			var f api.Function
			err = json.Unmarshal(i.Value, &f)
			e.versions[f.Version] = f
		}
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", i.Key, err)
		}
	}
	maps.DeleteFunc(s, func(_ id, e *entry) bool { return !e.exists() })
	return s, nil
}

// Run follows the store until ctx ends. What has been written is known to every Registry over the store soon after.
func (r *Registry) Run(ctx context.Context) {
	store.Follow(ctx, r.store, Prefix, time.Second, func(items []store.Item) {
		s, err := parse(items)
		if err != nil {
			r.log.Error("functions stay as they were known", "err", err)
			return
		}
		r.known.Store(&s)
	}, func(err error) {
		r.log.Warn("functions stay as they were known until the store answers", "err", err)
	})
}

// Lookup returns the version of a function that a qualifier names: a number, an alias, or "" and "$LATEST" for the newest. It
// reads memory only.
func (r *Registry) Lookup(namespace, name, qualifier string) (api.Function, error) {
	e, err := r.entry(namespace, name)
	if err != nil {
		return api.Function{}, err
	}
	version := e.head.Latest
	if qualifier != "" && qualifier != api.Latest {
		if version, err = strconv.Atoi(qualifier); err != nil {
			version = e.head.Aliases[qualifier]
		}
	}
	f, ok := e.versions[version]
	if !ok {
		return f, fmt.Errorf("%w: %s/%s has no version or alias %.80q", ErrNotFound, namespace, name, qualifier)
	}
	return f, nil
}

func (r *Registry) entry(namespace, name string) (*entry, error) {
	known := r.known.Load()
	if known == nil {
		return nil, ErrNotReady
	}
	e := (*known)[id{namespace, name}]
	if e == nil {
		return nil, fmt.Errorf("%w: %.80s/%.80s", ErrNotFound, namespace, name)
	}
	return e, nil
}

// Describe returns a function as it is known.
func (r *Registry) Describe(namespace, name string) (api.FunctionInfo, error) {
	e, err := r.entry(namespace, name)
	if err != nil {
		return api.FunctionInfo{}, err
	}
	h := e.head
	info := api.FunctionInfo{Namespace: h.Namespace, Name: h.Name, Latest: h.Latest, Aliases: h.Aliases, Updated: h.Updated,
		Versions: slices.Collect(maps.Values(e.versions))}
	slices.SortFunc(info.Versions, func(a, b api.Function) int { return cmp.Compare(b.Version, a.Version) })
	return info, nil
}

// List returns the newest versions of a namespace's functions, by name; of all if namespace is empty.
func (r *Registry) List(namespace string) ([]api.Function, error) {
	known := r.known.Load()
	if known == nil {
		return nil, ErrNotReady
	}
	list := []api.Function{}
	for at, e := range *known {
		if f, ok := e.versions[e.head.Latest]; ok && (namespace == "" || at.namespace == namespace) {
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b api.Function) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}
