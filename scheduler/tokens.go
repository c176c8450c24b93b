package scheduler

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// tokens are the cluster's join tokens. The store has hashes only: the secrets are random and long, so plain SHA-256 is enough.
type tokens struct {
	store store.Store
	pin   [sha256.Size]byte
}

// tokenRecord is a token in the store.
type tokenRecord struct {
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Uses    int       `json:"uses,omitempty"` // that are left; 0: any number
}

// errToken says that a token lets nobody join. It does not say why to whoever shows it, but to the log.
var errToken = errors.New("the join token is wrong, expired or used up")

// create makes a token that is valid for a time (0: for ever) and for a number of joins (0: any).
func (t *tokens) create(ctx context.Context, ttl time.Duration, uses int) (api.Token, error) {
	if ttl < 0 || uses < 0 {
		return api.Token{}, fmt.Errorf("%w: a token needs a positive time and number of uses", errInvalid)
	}
	token := api.Token{ID: random(8), Secret: random(16), Pin: t.pin}
	record := tokenRecord{Hash: hash(token.Secret), Created: time.Now().UTC(), Uses: uses}
	if ttl > 0 {
		record.Expires = record.Created.Add(ttl)
	}
	key := tokensPrefix + token.ID
	_, err := t.store.Write(ctx, store.Tx{If: []store.Condition{{Key: key}}, Put: []store.Item{item(key, record)}})
	return token, err
}

func random(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) //nolint:errcheck // it never fails
	return hex.EncodeToString(b)
}

func hash(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// list returns the tokens without secrets.
func (t *tokens) list(ctx context.Context) ([]api.TokenInfo, error) {
	items, err := t.store.Read(ctx, tokensPrefix)
	if err != nil {
		return nil, err
	}
	all := make([]api.TokenInfo, 0, len(items))
	for i, id := range names(items, tokensPrefix) {
		r, err := decode[tokenRecord](items[i])
		if err != nil {
			return nil, err
		}
		all = append(all, api.TokenInfo{ID: id, Created: r.Created, Expires: r.Expires, Uses: r.Uses})
	}
	return all, nil
}

// revoke deletes a token. Agents that joined with it stay.
func (t *tokens) revoke(ctx context.Context, id string) error {
	key := tokensPrefix + id
	_, err := t.store.Write(ctx, store.Tx{If: []store.Condition{{Key: key, Revision: store.Exists}}, Delete: []string{key}})
	if errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("token %q: %w", id, errNotFound)
	}
	return err
}

// use lets somebody join with a token, and counts it.
func (t *tokens) use(ctx context.Context, id, secret string) error {
	if id == "" || strings.Trim(id, "0123456789abcdef") != "" {
		return errToken
	}
	for {
		items, err := t.store.Read(ctx, tokensPrefix+id)
		if err != nil {
			return err
		}
		if len(items) != 1 || items[0].Key != tokensPrefix+id {
			return errToken
		}
		record, err := decode[tokenRecord](items[0])
		if err != nil {
			return err
		}
		if subtle.ConstantTimeCompare(hash(secret), record.Hash) != 1 {
			return errToken
		}
		done, err := t.count(ctx, items[0], record)
		if done {
			return err
		}
	}
}

// count returns false if somebody else used the token in this moment.
func (t *tokens) count(ctx context.Context, as store.Item, record tokenRecord) (bool, error) {
	expired := !record.Expires.IsZero() && time.Now().After(record.Expires)
	if record.Uses == 0 && !expired {
		return true, nil
	}
	tx := store.Tx{If: []store.Condition{{Key: as.Key, Revision: as.Revision}}}
	if record.Uses--; expired || record.Uses == 0 {
		tx.Delete = []string{as.Key}
	} else {
		tx.Put = []store.Item{item(as.Key, record)}
	}
	_, err := t.store.Write(ctx, tx)
	switch {
	case errors.Is(err, store.ErrConflict):
		return false, nil
	case err == nil && expired:
		err = errToken
	}
	return true, err
}
