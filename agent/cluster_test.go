package agent

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/stream"
)

func TestIdentityStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peer.key")
	one, err := identity(path)
	must(t, err)
	again, err := identity(path)
	must(t, err)
	if !one.Equal(again) || len(one) != ed25519.PrivateKeySize {
		t.Error("the agent is somebody else after a restart")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", st.Mode(), err)
	}
	for _, text := range []string{"", "not PEM", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if _, err := identity(path); err == nil {
			t.Errorf("identity %q is accepted", text)
		}
	}
}

// twoBlobs is an image whose second layer has less that running programs read, and so comes first.
func twoBlobs() *image {
	layers := []blockfmt.Layer{{RunningBlocks: 3}, {RunningBlocks: 1}}
	im := &image{dir: "/nowhere", artifact: &blockfmt.Artifact{Layers: layers}}
	for i, n := range []int{4, 2} {
		im.indexes = append(im.indexes, blocktest.NewBlob(uint64(i), n<<10, 1<<10).Index)
	}
	return im
}

func TestOrderOfAnUnrecordedImage(t *testing.T) {
	for name, c := range map[string]struct {
		ahead ahead
		order []int
		n     int
	}{
		"likely blocks":  {ahead{true, 1 << 20, false}, []int{4, 0, 1, 2}, 4},
		"small budget":   {ahead{true, 2 << 10, false}, []int{4}, 1},
		"everything":     {ahead{true, 1 << 20, true}, []int{4, 0, 1, 2, 0, 1, 2, 3, 4, 5}, 10},
		"nothing asked":  {ahead{true, 0, false}, nil, 0},
		"prefetch is no": {ahead{false, 1 << 20, false}, []int{4, 0, 1, 2}, 0},
	} {
		order, n := c.ahead.order(twoBlobs())
		if name == "small budget" { // as many as fit, whatever they compress to
			order, n = order[:min(len(order), 1)], min(n, 1)
		}
		if !slices.Equal(order, c.order) || n != c.n {
			t.Errorf("%s: %d, the first %d ahead; want %d, %d", name, order, n, c.order, c.n)
		}
	}
}

func TestOrderOfARecordedImage(t *testing.T) {
	im := twoBlobs()
	im.dir = t.TempDir()
	record := blockfmt.Record{{Layer: 1, Block: 1}, {Layer: 0, Block: 3}}
	must(t, os.WriteFile(filepath.Join(im.dir, recordFile), record.Encode(), 0o600))
	order, n := ahead{true, 1 << 20, false}.order(im)
	if want := []int{5, 3, 4, 0, 1, 2}; !slices.Equal(order, want) || n != 2 {
		t.Errorf("%d, the first %d ahead; want %d, 2", order, n, want)
	}
}

// What travels as an image's head must be the same list on every machine, and small enough to be blocks.
func TestHeadParts(t *testing.T) {
	part := func(name string, size int64, role string) ocispec.Descriptor {
		return ocispec.Descriptor{Digest: digest.FromString(name), Size: size, Annotations: map[string]string{blockfmt.AnnotationRole: role}}
	}
	config, index, metadata := part("config", 10, ""), part("index", 100, ""), part("metadata", blockfmt.MaxBlockSize, "")
	m := ocispec.Manifest{Config: config, Layers: []ocispec.Descriptor{
		part("blob", 1000, blockfmt.RoleDevice), index, part("blob", 1000, blockfmt.RoleDevice), index,
		part("too large", blockfmt.MaxBlockSize+1, ""), part("empty", 0, ""), {Digest: "sha256:x", Size: 1}, {Digest: digest.SHA512.FromString("x"), Size: 1}, metadata,
	}}
	var names []digest.Digest
	for _, p := range headParts(m) {
		names = append(names, p.Digest)
	}
	if want := []digest.Digest{config.Digest, index.Digest, metadata.Digest}; !slices.Equal(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
}

func TestPaceOfAnImage(t *testing.T) {
	var p pace
	im, now := &content{indexes: twoBlobs().indexes}, time.Now()
	if rates := p.since([]int{1, 1}, im, now); rates != nil {
		t.Errorf("rates %d at the first heartbeat", rates)
	}
	rates := p.since([]int{3, 1}, im, now.Add(2*time.Second))
	bytes := im.indexes[0].StoredSize() + im.indexes[1].StoredSize()
	if want := []int64{bytes / 6, 0}; !slices.Equal(rates, want) { // one of six blocks a second
		t.Errorf("rates %d, want %d", rates, want)
	}
	if rates := p.since([]int{2, 1}, im, now.Add(3*time.Second)); rates[0] != 0 {
		t.Errorf("rate %d of an evicted block", rates[0])
	}
}

// Whom an agent cut off it names as long as it refuses it, and whom it could not reach once; not more than a scheduler takes.
func TestComplaints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := membership{cluster: &cluster{cfg: Config{Log: slog.New(slog.DiscardHandler)}, places: new(api.Client)}, failed: map[string]bool{}, cutOff: map[string]time.Time{}}
		for i := range 2 * api.MaxNamed {
			m.cutsOff(stream.PeerID(fmt.Sprint("liar ", i)))
			m.lost(stream.PeerID(fmt.Sprint("lost ", i)), io.EOF)
		}
		expect := func(failed, cutOff int) {
			t.Helper()
			if said, _ := m.report(); len(said.Failed) != failed || len(said.CutOff) != cutOff {
				t.Errorf("%d failed and %d are cut off, want %d and %d", len(said.Failed), len(said.CutOff), failed, cutOff)
			}
		}
		expect(api.MaxNamed, api.MaxNamed)
		expect(0, api.MaxNamed)
		time.Sleep(ban + time.Second)
		expect(0, 0)
	})
}
