// Package etcd keeps the scheduler's state in etcd: in a server of its own process (Embed), or in a cluster (Dial).
//
// It implements package store's Store, and stands below the scheduler, beside the way of the data.
package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/xylem-project/xylem/scheduler/store"
)

// Config of a connection to a cluster. Endpoints is needed.
type Config struct {
	// Endpoints are the cluster's, as "https://host:2379" or "unix:///path".
	Endpoints []string
	// Prefix begins all keys, so that clusters can share one etcd. Default "/xylem/".
	Prefix string
	// CA, Cert and Key are PEM files for TLS. Default: the system's certificates, and no certificate of our own.
	CA, Cert, Key string
	// Log receives what etcd's client warns of. Default: discarded.
	Log *slog.Logger
}

// DefaultPrefix begins all keys if nothing else is said.
const DefaultPrefix = "/xylem/"

// pageSize bounds the items of one answer.
const pageSize = 1000

// Client is a Store in etcd.
type Client struct {
	etcd   *clientv3.Client
	prefix string
}

// Dial returns a client of a cluster. It does not wait for the cluster to answer.
func Dial(cfg Config) (*Client, error) {
	security, err := cfg.tls()
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints: cfg.Endpoints, TLS: security, Logger: zapLogger(cfg.Log), DialTimeout: 2 * time.Second,
		DialKeepAliveTime: 6 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithDisableServiceConfig()},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
	return newClient(etcd, cfg.Prefix), nil
}

func newClient(etcd *clientv3.Client, prefix string) *Client {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	return &Client{etcd, prefix}
}

func (c Config) tls() (*tls.Config, error) {
	if c.CA == "" && c.Cert == "" && c.Key == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificates in PEM", c.CA)
		}
	}
	if c.Cert != "" || c.Key != "" {
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// Close ends all calls and connections.
func (c *Client) Close() error { return c.etcd.Close() }

// Read implements store.Store.
func (c *Client) Read(ctx context.Context, prefix string) ([]store.Item, error) {
	items, _, err := c.read(ctx, prefix)
	return items, err
}

// read returns the items as of one revision, page by page.
func (c *Client) read(ctx context.Context, prefix string) (items []store.Item, revision int64, err error) {
	from, end := c.prefix+prefix, clientv3.GetPrefixRangeEnd(c.prefix+prefix)
	for {
		options := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(revision)}
		page, err := c.etcd.Get(ctx, from, options...)
		if err != nil {
			return nil, 0, failure(ctx, "read "+prefix, err)
		}
		if revision == 0 {
			revision = page.Header.Revision
		}
		for _, kv := range page.Kvs {
			items = append(items, store.Item{Key: c.name(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
		}
		if !page.More {
			return items, revision, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

func (c *Client) name(key []byte) string { return strings.TrimPrefix(string(key), c.prefix) }

// Write implements store.Store.
func (c *Client) Write(ctx context.Context, tx store.Tx) (int64, error) {
	if err := tx.Validate(); err != nil {
		return 0, err
	}
	answer, err := c.etcd.Txn(ctx).If(c.conditions(tx)...).Then(c.operations(tx)...).Commit()
	if err != nil {
		return 0, failure(ctx, "write", err)
	}
	if !answer.Succeeded {
		return 0, store.ErrConflict
	}
	return answer.Header.Revision, nil
}

func (c *Client) conditions(tx store.Tx) []clientv3.Cmp {
	var all []clientv3.Cmp
	for _, condition := range tx.If {
		revision := clientv3.ModRevision(c.prefix + condition.Key)
		if condition.Revision == store.Exists {
			all = append(all, clientv3.Compare(revision, ">", 0))
		} else {
			all = append(all, clientv3.Compare(revision, "=", condition.Revision))
		}
	}
	return all
}

func (c *Client) operations(tx store.Tx) []clientv3.Op {
	var all []clientv3.Op
	for _, item := range tx.Put {
		all = append(all, clientv3.OpPut(c.prefix+item.Key, string(item.Value)))
	}
	for _, key := range tx.Delete {
		all = append(all, clientv3.OpDelete(c.prefix+key))
	}
	return all
}

// Watch implements store.Store.
func (c *Client) Watch(ctx context.Context, prefix string, changed func([]store.Item)) error {
	items, revision, err := c.read(ctx, prefix)
	if err != nil {
		return err
	}
	changed(items)
	current := map[string]store.Item{}
	for _, item := range items {
		current[item.Key] = item
	}
	watching, stop := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer stop()
	for news := range c.etcd.Watch(watching, c.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1)) {
		if err := news.Err(); err != nil {
			return failure(ctx, "watch "+prefix, err)
		}
		for _, event := range news.Events {
			if event.Type == clientv3.EventTypeDelete {
				delete(current, c.name(event.Kv.Key))
			} else {
				current[c.name(event.Kv.Key)] = store.Item{Key: c.name(event.Kv.Key), Value: event.Kv.Value, Revision: event.Kv.ModRevision}
			}
		}
		if len(news.Events) > 0 {
			changed(sorted(current))
		}
	}
	return failure(ctx, "watch "+prefix, errors.New("ended"))
}

// failure says what kind an error of etcd is.
func failure(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("etcd: %s: %w: %w", what, store.ErrUnavailable, ctx.Err())
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrDuplicateKey):
		return fmt.Errorf("etcd: %s: %w: %w", what, store.ErrInvalid, err)
	default:
		return fmt.Errorf("etcd: %s: %w: %w", what, store.ErrUnavailable, err)
	}
}
