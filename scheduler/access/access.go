// Package access decides who may do what with functions: users with access keys, each for some namespaces.
//
// It stands at the door of the way of an invocation:
//
//	client --Bearer or AWS Signature Version 4--> Guard --> package invoke
//
// A key is an ID and a secret. Clients show both as a bearer token, or sign with the secret as for AWS, so that AWS's programs work.
// To verify signatures the store has the secrets themselves: it holds the cluster's CA key as well and is protected like it.
package access

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// Errors that callers act on.
var (
	// ErrUnknown says that a request shows no key, or none that is valid. It does not say why: the log does.
	ErrUnknown = errors.New("no valid access key")
	// ErrDenied says that a key is not for what was asked.
	ErrDenied = errors.New("the access key is not for this")
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("no such access key")
	// ErrInvalid says that a key cannot be as asked.
	ErrInvalid = errors.New("invalid access key")
)

const prefix = "keys/" // + ID; record in JSON

// idPrefix begins the IDs of keys, which AWS's programs take for theirs.
const idPrefix = "XYLM"

// record is a key in the store.
type record struct {
	api.KeyInfo
	Secret string `json:"secret"`
}

// Keys are the access keys of a cluster. They are safe for concurrent use.
type Keys struct {
	store store.Store
	log   *slog.Logger
	known atomic.Pointer[map[string]record] // by ID; nil before the store was read
}

// New returns Keys that know none before Run.
func New(s store.Store, log *slog.Logger) *Keys { return &Keys{store: s, log: log} }

// Run follows the store until ctx ends. While the store is away, keys are as they were.
func (k *Keys) Run(ctx context.Context) {
	store.Follow(ctx, k.store, prefix, time.Second, k.learn, func(err error) {
		k.log.Warn("access keys stay as they were known until the store answers", "err", err)
	})
}

func (k *Keys) learn(items []store.Item) {
	known := make(map[string]record, len(items))
	for _, i := range items {
		var r record
		if err := json.Unmarshal(i.Value, &r); err != nil {
			k.log.Error("an access key's record is damaged", "key", i.Key, "err", err)
			continue
		}
		known[r.ID] = r
	}
	k.known.Store(&known)
}

// Create makes a key. Its secret is not shown again.
func (k *Keys) Create(ctx context.Context, request api.KeyRequest) (api.KeyResponse, error) {
	if len(request.Namespaces) == 0 || len(request.Namespaces) > 100 || request.TTL < 0 {
		return api.KeyResponse{}, fmt.Errorf("%w: it needs 1 to 100 namespaces, or \"*\", and no negative time", ErrInvalid)
	}
	for _, ns := range request.Namespaces {
		if ns == "*" {
			continue
		}
		if err := api.ValidName("namespace", ns); err != nil {
			return api.KeyResponse{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	r := record{Secret: rand.Text() + rand.Text(), KeyInfo: api.KeyInfo{
		ID: idPrefix + rand.Text()[:16], Namespaces: request.Namespaces, InvokeOnly: request.InvokeOnly, Created: time.Now().UTC()}}
	if request.TTL > 0 {
		r.Expires = r.Created.Add(request.TTL)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return api.KeyResponse{}, err
	}
	key := prefix + r.ID
	_, err = k.store.Write(ctx, store.Tx{If: []store.Condition{{Key: key}}, Put: []store.Item{{Key: key, Value: text}}})
	return api.KeyResponse{KeyInfo: r.KeyInfo, Secret: r.Secret}, err
}

// List returns the keys without their secrets, by ID.
func (k *Keys) List(ctx context.Context) ([]api.KeyInfo, error) {
	items, err := k.store.Read(ctx, prefix)
	if err != nil {
		return nil, err
	}
	list := []api.KeyInfo{}
	for _, i := range items {
		var r record
		if err := json.Unmarshal(i.Value, &r); err != nil {
			return nil, fmt.Errorf("record %s: %w", i.Key, err)
		}
		list = append(list, r.KeyInfo)
	}
	return list, nil
}

// Revoke ends a key at once, on every scheduler.
func (k *Keys) Revoke(ctx context.Context, id string) error {
	_, err := k.store.Write(ctx, store.Tx{If: []store.Condition{{Key: prefix + id, Revision: store.Exists}}, Delete: []string{prefix + id}})
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("%w: %.80q", ErrNotFound, id)
	}
	return err
}

// find returns a key that is valid now.
func (k *Keys) find(id string) (record, error) {
	known := k.known.Load()
	if known == nil {
		return record{}, fmt.Errorf("%w: keys are not known yet", store.ErrUnavailable)
	}
	r, ok := (*known)[id]
	switch {
	case !ok:
		return r, fmt.Errorf("%w: no key %.80q", ErrUnknown, id)
	case !r.Expires.IsZero() && time.Now().After(r.Expires):
		return r, fmt.Errorf("%w: key %s expired", ErrUnknown, id)
	}
	return r, nil
}

// allows returns an error unless the key is for that.
func (r record) allows(namespace string, manage bool) error {
	if !slices.Contains(r.Namespaces, "*") && !slices.Contains(r.Namespaces, namespace) {
		return fmt.Errorf("%w: key %s is for the namespaces %s, not for %.80q", ErrDenied, r.ID, strings.Join(r.Namespaces, ", "), namespace)
	}
	if manage && r.InvokeOnly {
		return fmt.Errorf("%w: key %s is for invocations only", ErrDenied, r.ID)
	}
	return nil
}
