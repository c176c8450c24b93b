package etcd

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/xylem-project/xylem/scheduler/store"
)

// revokeTimeout bounds the wish to let a key vanish at once when its holder ends.
const revokeTimeout = time.Second

// Hold implements store.Store with a lease. etcd takes no lease below two seconds.
func (c *Client) Hold(ctx context.Context, item store.Item, ttl time.Duration, held func()) error {
	start, cancel := context.WithTimeout(ctx, ttl)
	defer cancel()
	lease, err := c.etcd.Grant(start, int64(ttl/time.Second))
	if err != nil {
		return failure(ctx, "lease for "+item.Key, err)
	}
	defer c.revoke(ctx, lease.ID)
	renewing, stop := context.WithCancel(ctx)
	defer stop()
	renewed, err := c.etcd.KeepAlive(renewing, lease.ID)
	if err != nil {
		return failure(ctx, "lease for "+item.Key, err)
	}
	if _, err := c.etcd.Put(start, c.prefix+item.Key, string(item.Value), clientv3.WithLease(lease.ID)); err != nil {
		return failure(ctx, "hold "+item.Key, err)
	}
	held()
	if err := watchLease(ctx, renewed, ttl); err != nil {
		return failure(ctx, "hold "+item.Key, err)
	}
	return nil
}

// watchLease returns nil when ctx ends, and an error when the lease was not renewed for its time to live. It does not rely
// on the client to close the channel in time.
func watchLease(ctx context.Context, renewed <-chan *clientv3.LeaseKeepAliveResponse, ttl time.Duration) error {
	expired := time.NewTimer(ttl)
	defer expired.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-expired.C:
			return errors.New("the lease was not renewed in time")
		case _, ok := <-renewed:
			if !ok && ctx.Err() != nil {
				return nil
			}
			if !ok {
				return errors.New("the lease is lost")
			}
			expired.Reset(ttl)
		}
	}
}

func (c *Client) revoke(ctx context.Context, id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancel()
	c.etcd.Revoke(ctx, id) //nolint:errcheck // it expires
}

func sorted(items map[string]store.Item) []store.Item {
	all := make([]store.Item, 0, len(items))
	for _, key := range slices.Sorted(maps.Keys(items)) {
		item := items[key]
		item.Value = slices.Clone(item.Value)
		all = append(all, item)
	}
	return all
}
