package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt/convert"
)

// A converter makes block images of pulled images that have none, one at a time, for the next time they are pulled. They
// stay on this node.
type converter struct {
	dir        string // Root/converted: an OCI image layout for every image, and the cache of converted layers
	key        ed25519.PrivateKey
	registries map[string]RegistryConfig
	done       func(ctx context.Context, o origin, source digest.Digest, manifest []byte) error
	log        *slog.Logger

	queue chan job
}

type job struct {
	origin origin
	source digest.Digest
}

// maxJobs bounds the conversions that wait. What does not find room is converted when it is pulled again.
const maxJobs = 64

// add queues the conversion of an image, without waiting.
func (c *converter) add(o origin, source digest.Digest) {
	select {
	case c.queue <- job{o, source}:
	default:
		c.log.Warn("image not converted, too many wait already", "ref", o.Ref)
	}
}

// run converts until ctx ends.
func (c *converter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-c.queue:
			start := time.Now()
			if err := c.convert(ctx, j); err != nil && ctx.Err() == nil {
				c.log.Warn("image not converted", "ref", j.origin.Ref, "source", j.source, "err", err)
			} else if err == nil {
				c.log.Info("image converted for the next pull", "ref", j.origin.Ref, "source", j.source, "took", time.Since(start))
			}
		}
	}
}

func (c *converter) convert(ctx context.Context, j job) error {
	o := origin{Ref: j.origin.Ref, Repository: j.origin.Repository, Layout: filepath.Join(c.dir, j.source.Encoded())}
	host, _, _ := strings.Cut(o.Repository, "/")
	reg, err := c.registry(host)
	if err != nil {
		return err
	}
	src, err := convert.Open(ctx, fmt.Sprintf("%s@%s", o.Repository, j.source), "", reg)
	if err != nil {
		return err
	}
	result, err := convert.Convert(ctx, src, convert.Options{
		Key: c.key, CacheDir: filepath.Join(c.dir, "layers"), Workers: 1, Logger: c.log})
	if err != nil {
		return err
	}
	defer debug.FreeOSMemory() // a conversion takes more than the agent does in all its other life
	defer result.Close()       //nolint:errcheck // what it holds is a cache
	if err := os.RemoveAll(o.Layout); err != nil {
		return err
	}
	if err := result.WriteLayout(o.Layout, ""); err != nil {
		return err
	}
	return c.done(ctx, o, j.source, result.Manifest)
}

func (c *converter) registry(host string) (convert.Registry, error) {
	rc := c.registries[host]
	pool, err := certPool(host, rc)
	if err != nil || pool == nil {
		return convert.Registry{PlainHTTP: rc.PlainHTTP}, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return convert.Registry{PlainHTTP: rc.PlainHTTP, Transport: transport}, nil
}
