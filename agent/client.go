package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/scheduler/api"
)

// ImageRequest names an image as the user does: a registry reference.
type ImageRequest struct {
	Ref string `json:"ref"`
}

// MountRequest asks for an image at a directory of the caller's.
type MountRequest struct {
	Ref string `json:"ref,omitempty"`
	Dir string `json:"dir"` // absolute
}

// MountResult says what was mounted.
type MountResult struct {
	Chain digest.Digest `json:"chain"`
	Dir   string        `json:"dir"`
}

// RecordingResult is a startup profile in its text form.
type RecordingResult struct {
	Profile string `json:"profile"`
}

// ImageInfo is one image on the node.
type ImageInfo struct {
	Ref      string        `json:"ref"`
	Image    digest.Digest `json:"image"`  // manifest of the block image
	Source   digest.Digest `json:"source"` // manifest it was made from
	Layers   int           `json:"layers"`
	Blocks   int           `json:"blocks"`
	Held     int           `json:"held"`     // of the blocks, those in the cache
	Recorded bool          `json:"recorded"` // a startup record is here
	Users    int           `json:"users"`    // containers and mounts
}

// GCResult says what a garbage collection removed.
type GCResult struct {
	FreedBytes int64           `json:"freed_bytes"`
	Images     []digest.Digest `json:"images"` // block images that nothing used
}

// Client calls an agent through its admin socket.
type Client struct{ http http.Client }

// NewClient returns a client of the agent with this admin socket (Config.AdminSocket).
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Images lists the images on the node.
func (c *Client) Images(ctx context.Context) (r []ImageInfo, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/images", nil, &r)
}

// Mount mounts the block image of ref read-only at dir.
func (c *Client) Mount(ctx context.Context, ref, dir string) (r MountResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/mounts", MountRequest{Ref: ref, Dir: dir}, &r)
}

// Unmount undoes Mount.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	return c.call(ctx, http.MethodDelete, "/v1/mounts", MountRequest{Dir: dir}, new(MountResult))
}

// StartRecording begins to record what containers of ref read; nobody may be using it.
func (c *Client) StartRecording(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodPost, "/v1/recordings", ImageRequest{ref}, new(struct{}))
}

// StopRecording returns the profile since StartRecording, for convert --profile.
func (c *Client) StopRecording(ctx context.Context, ref string) (blockfmt.Profile, error) {
	var r RecordingResult
	if err := c.call(ctx, http.MethodDelete, "/v1/recordings", ImageRequest{ref}, &r); err != nil {
		return nil, err
	}
	return blockfmt.ParseProfile([]byte(r.Profile))
}

// Trees lists the function trees of the cluster.
func (c *Client) Trees(ctx context.Context) (r []api.TreeInfo, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/trees", nil, &r)
}

// Tree returns the function tree of the block image with this manifest.
func (c *Client) Tree(ctx context.Context, image digest.Digest) (r api.Tree, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/trees/"+image.String(), nil, &r)
}

// CacheList lists the blobs in the block cache.
func (c *Client) CacheList(ctx context.Context) (r []cache.BlobInfo, err error) {
	return r, c.call(ctx, http.MethodGet, "/v1/cache", nil, &r)
}

// CacheGC removes what no mount needs from the block cache.
func (c *Client) CacheGC(ctx context.Context) (r GCResult, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/cache/gc", nil, &r)
}

// CacheScrub hashes everything in the block cache again and removes what is damaged.
func (c *Client) CacheScrub(ctx context.Context) (r cache.ScrubReport, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/cache/scrub", nil, &r)
}

func (c *Client) call(ctx context.Context, method, path string, body, result any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if op := new(net.OpError); errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("no agent answers (%w): start `xylem agent`, or point --state at its state directory", op.Err)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("agent: %s", strings.TrimSpace(string(text)))
	}
	return json.NewDecoder(resp.Body).Decode(result)
}
