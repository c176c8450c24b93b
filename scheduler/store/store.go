// Package store is what the scheduler needs of storage: keys with revisions, transactions, leases and news of changes.
//
// It stands beside the way of the data, below the scheduler:
//
//	agents --api--> scheduler --tree--> changed members --Store.Write--> etcd
//
// Two implementations pass the same conformance suite (package storetest): Memory, and package etcd's, which speaks to an
// embedded server or to a cluster.
package store

import (
	"context"
	"errors"
	"time"
)

// Errors that callers act on; all errors of a Store wrap one of them, or that of a context.
var (
	// ErrConflict says that a condition of a transaction does not hold: somebody else was faster, or is in charge now.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable says that the storage does not answer. Whether a transaction took place is not known.
	ErrUnavailable = errors.New("storage unavailable")
	// ErrInvalid says that a transaction can never succeed.
	ErrInvalid = errors.New("invalid")
)

// MaxOps bounds the keys that one transaction names, conditions included: etcd takes 128 by default.
const MaxOps = 120

// An Item is a key with its value. The revision is that of the transaction that wrote it; revisions grow with every write of
// anything in the store.
type Item struct {
	Key      string
	Value    []byte
	Revision int64
}

// A Condition holds if the key has not been written since that revision; revision 0: if it does not exist; Exists: if it does.
type Condition struct {
	Key      string
	Revision int64
}

// Exists is the revision of a condition that any key fulfils that exists.
const Exists = -1

// A Tx writes and deletes keys, all or none, if all conditions hold. No key may be written or deleted twice.
type Tx struct {
	If     []Condition
	Put    []Item // without revisions
	Delete []string
}

// A Store is safe for concurrent use. It does not keep, and callers may change, what they pass or get.
type Store interface {
	// Read returns the items whose keys have a prefix, by key.
	Read(ctx context.Context, prefix string) ([]Item, error)
	// Write returns the revision of what it wrote. What has been written is seen by every Read that begins later, on any machine.
	Write(ctx context.Context, tx Tx) (int64, error)
	// Watch calls changed with the items whose keys have a prefix, first as they are and then after every change, though it
	// may leave out states in between. It returns when ctx ends or the storage fails.
	Watch(ctx context.Context, prefix string, changed func([]Item)) error
	// Hold writes a key that lives no longer than its holder: it vanishes when ctx ends, or ttl (whole seconds) after the
	// holder was last able to renew it. It calls held when the key is written, and returns nil when ctx ended, or an error when the
	// key may have vanished.
	Hold(ctx context.Context, item Item, ttl time.Duration, held func()) error
}

// Validate returns an error that wraps ErrInvalid if no Store can do what tx says.
func (tx Tx) Validate() error {
	if n := len(tx.If) + len(tx.Put) + len(tx.Delete); n > MaxOps {
		return errors.Join(ErrInvalid, errors.New("transaction names too many keys"))
	}
	written := map[string]bool{}
	for _, item := range tx.Put {
		if item.Key == "" || written[item.Key] {
			return errors.Join(ErrInvalid, errors.New("transaction writes "+item.Key+" twice, or a key without a name"))
		}
		written[item.Key] = true
	}
	for _, key := range tx.Delete {
		if key == "" || written[key] {
			return errors.Join(ErrInvalid, errors.New("transaction writes "+key+" twice, or a key without a name"))
		}
		written[key] = true
	}
	return nil
}
