package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
)

const (
	// blobBytes is the blob of which throughput and memory are measured.
	blobBytes = 1 << 30
	// pairs of downloads in a round, one from either server.
	pairs = 5
)

// warm measures how fast the proxy gives a blob that it keeps, against nginx and the same file.
func (b *bench) warm(ctx context.Context) (err error) {
	a, err := b.startAlone(ctx, blobBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.pull(ctx); err != nil {
		return err
	}
	nginx, stop, err := a.startNginx(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var ours, theirs []float64
	for i := range 1 + b.Rounds*pairs {
		n, err := speed(ctx, nginx)
		if err != nil {
			return fmt.Errorf("nginx: %w", err)
		}
		p, err := speed(ctx, a.blobURL(a.base))
		if err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		if i > 0 { // what is read first may not be in memory
			ours, theirs = append(ours, p), append(theirs, n)
		}
	}
	b.Add(figures.Ratio("warm_blob_vs_nginx", ours, theirs), figures.Summary("warm_blob_bytes_per_second", "B/s", ours),
		figures.Summary("nginx_bytes_per_second", "B/s", theirs))
	return nil
}

const nginxConfig = `worker_processes 1;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 64; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
	server { listen %[2]s; root %[1]s; }
}
`

// startNginx serves the file that the proxy keeps.
func (a *alone) startNginx(ctx context.Context) (url string, stop func() error, err error) {
	dir := a.lab.Path("www")
	if err := os.Remove(a.file); err != nil {
		return "", nil, err
	}
	var kept string
	err = a.proxy.Poll(ctx, time.Minute, func() (err error) { // it is synced before it is kept
		kept, err = a.kept()
		return err
	})
	if err != nil {
		return "", nil, err
	}
	if err := os.Link(kept, a.file); err != nil {
		return "", nil, err
	}
	listen, err := freeAddress()
	if err != nil {
		return "", nil, err
	}
	config := a.lab.Path("nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, "user root;\n"+nginxConfig, dir, listen), 0o600); err != nil {
		return "", nil, err
	}
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx = "/usr/sbin/nginx"
	}
	url = "http://" + listen + "/" + filepath.Base(a.file)
	p, err := a.run(ctx, "nginx", exec.Command(nginx, "-p", dir, "-c", config, "-e", "stderr"), strings.TrimSuffix(url, filepath.Base(a.file)))
	if err != nil {
		return "", nil, err
	}
	return url, p.Stop, nil
}

// kept returns the file in which the proxy keeps the blob.
func (a *alone) kept() (string, error) {
	found, err := filepath.Glob(a.lab.Path("root/*/plain/sha256-" + a.layer.Hex))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("the proxy keeps the blob in %q", found)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// speed returns the bytes per second at which one client gets the blob, on a connection of its own.
func speed(ctx context.Context, url string) (float64, error) {
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	begin := time.Now()
	resp, err := get(ctx, transport, url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := discard(resp.Body)
	if err == nil && n != blobBytes {
		err = fmt.Errorf("%d bytes, want %d", n, blobBytes)
	}
	return float64(n) / time.Since(begin).Seconds(), err
}

func get(ctx context.Context, transport http.RoundTripper, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("%s: %s", url, resp.Status), resp.Body.Close())
	}
	return resp, nil
}

// discard reads in pieces that are larger than those of io.Copy, so that servers are measured and not this client.
func discard(r io.Reader) (total int64, err error) {
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
