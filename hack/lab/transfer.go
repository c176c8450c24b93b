package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/nodelab"
)

// Throughput sends zeros over one TCP connection for a while and returns the rate at which they arrive: what the wire gives to
// whoever uses it best.
func (l *Lab) Throughput(ctx context.Context, from, to *Host, during time.Duration) (Rate, error) {
	listener, err := to.Listen(netip.AddrPortFrom(to.Addr, 0).String())
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	out, err := from.DialContext(ctx, "tcp4", listener.Addr().String())
	if err != nil {
		return 0, err
	}
	defer out.Close()
	in, err := listener.Accept()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	end := time.Now().Add(during)
	if err := errors.Join(out.SetDeadline(end), in.SetDeadline(end)); err != nil {
		return 0, err
	}
	var group errgroup.Group
	group.Go(func() error { return flood(out) })
	n, took, err := drain(in)
	if err == nil && n == 0 {
		err = errors.New("nothing arrived")
	}
	if err := errors.Join(err, group.Wait()); err != nil {
		return 0, fmt.Errorf("from %s to %s: %w", from.Name, to.Name, err)
	}
	return Rate(float64(n) * 8 / took.Seconds()), nil
}

const chunk = 256 << 10

// flood writes until the connection's deadline.
func flood(conn net.Conn) error {
	zeros := make([]byte, chunk)
	for {
		if _, err := conn.Write(zeros); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// drain reads until the connection's deadline and returns how many bytes came after the first ones, and in what time.
func drain(conn net.Conn) (n int64, took time.Duration, err error) {
	buf := make([]byte, chunk)
	if _, err := conn.Read(buf); err != nil {
		return 0, 0, err
	}
	for begin := time.Now(); ; took = time.Since(begin) {
		read, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n, took, nil
		}
		if err != nil {
			return 0, 0, err
		}
		n += int64(read)
	}
}

// Download is what one host got from the registry, and how long it took.
type Download struct {
	Bytes int64
	Time  time.Duration
}

// downloads at a time, as containerd does.
const downloads = 3

// Proxied is an image's reference as clients on a host name it that go through the host's registry proxy.
func Proxied(ref string) string {
	_, name, _ := strings.Cut(ref, "/")
	return nodelab.ProxyAddress + "/" + name
}

// Download reads an image's layers as a client without any of us would, and forgets them: no unpacking, no hash, no disk.
func (h *Host) Download(ctx context.Context, ref string) (Download, error) {
	transport := &http.Transport{DialContext: h.DialContext, MaxIdleConnsPerHost: downloads, ReadBufferSize: 64 << 10}
	defer transport.CloseIdleConnections()
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return Download{}, err
	}
	begin := time.Now()
	image, err := remote.Image(tag, remote.WithContext(ctx), remote.WithTransport(transport))
	if err != nil {
		return Download{}, err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return Download{}, err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(downloads)
	var total int64
	for _, layer := range manifest.Layers {
		total += layer.Size
		group.Go(func() error { return discard(ctx, transport, tag.Context(), layer) })
	}
	if err := group.Wait(); err != nil {
		return Download{}, fmt.Errorf("%s downloads %s: %w", h.Name, ref, err)
	}
	return Download{Bytes: total, Time: time.Since(begin)}, nil
}

func discard(ctx context.Context, transport *http.Transport, repo name.Repository, layer v1.Descriptor) error {
	url := fmt.Sprintf("http://%s/v2/%s/blobs/%s", repo.RegistryStr(), repo.RepositoryStr(), layer.Digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n != layer.Size) {
		err = fmt.Errorf("%s with %d bytes, want %d", resp.Status, n, layer.Size)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", layer.Digest, err)
	}
	return nil
}

// DownloadAll lets all hosts download an image at the same time: what a fleet does today. The results are in the order of Hosts.
func (l *Lab) DownloadAll(ctx context.Context, ref string) ([]Download, error) {
	results := make([]Download, len(l.hosts))
	group, ctx := errgroup.WithContext(ctx)
	for i, h := range l.hosts {
		group.Go(func() (err error) {
			results[i], err = h.Download(ctx, ref)
			return err
		})
	}
	return results, group.Wait()
}

// InMemory is a Config.Dir for labs whose links are measured: many hosts that share one disk would measure that.
const InMemory = "/dev/shm"

// LowerBound is the least time in seconds in which n hosts can have so many bytes, all links and the registry's having this rate.
func LowerBound(bytes int64, n int, rate Rate) float64 {
	f, u := float64(bytes), rate.Bytes()
	return max(f/u, float64(n)*f/(u+float64(n)*u))
}
