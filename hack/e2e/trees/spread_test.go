package trees

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// spread is an image on its way to the hosts of a lab.
type spread struct {
	*lab.Lab
	name, ref string
	data      []byte // of its only file
	stored    int64  // bytes of the block image
	before    lab.Traffic
}

// newSpread puts an image of noise into the registry. It is nowhere else yet.
func newSpread(t *testing.T, l *lab.Lab, name string) *spread {
	t.Helper()
	return newSpreadOf(t, l, name, imageBytes)
}

// newSpreadOf is newSpread for an image of another size.
func newSpreadOf(t *testing.T, l *lab.Lab, name string, size int) *spread {
	t.Helper()
	s := &spread{Lab: l, name: name, data: make([]byte, size)}
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(s.data)
	image, err := containerdtest.Image([]string{"/noise"}, map[string][]byte{"noise": s.data})
	must(t, err)
	s.ref, err = l.Services.Push(t.Context(), name+":1", image)
	must(t, err)
	_, err = l.Services.Convert(t.Context(), s.ref, "--push")
	must(t, err)
	out, err := l.Services.Run(t.Context(), "inspect", "--output", "json", s.ref)
	must(t, err)
	var info struct{ StoredBytes, MetadataBytes int64 }
	must(t, json.Unmarshal([]byte(out), &info))
	s.stored = info.StoredBytes + info.MetadataBytes
	s.before, err = l.Registry().Traffic(t.Context())
	must(t, err)
	t.Cleanup(func() { s.unmount(t) })
	return s
}

func (s *spread) dir(h *lab.Host) string  { return s.Services.Path("mnt-" + s.name + "-" + h.Name) }
func (s *spread) file(h *lab.Host) string { return filepath.Join(s.dir(h), "noise") }

func client(h *lab.Host) *agent.Client {
	return agent.NewClient(filepath.Join(h.Node.State(), "admin.sock"))
}

// mount mounts the image on hosts at the same moment.
func (s *spread) mount(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	for _, h := range hosts {
		g.Go(func() error {
			err := os.MkdirAll(s.dir(h), 0o755)
			if err == nil {
				_, err = client(h).Mount(ctx, s.ref, s.dir(h))
			}
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", h.Name, err, h.Node.AgentLogTail())
			}
			return nil
		})
	}
	must(t, g.Wait())
}

// unmount takes the image out of use, so that it does not disturb what comes after.
func (s *spread) unmount(t *testing.T) {
	for _, h := range s.Hosts() {
		_ = client(h).Unmount(context.WithoutCancel(t.Context()), s.dir(h)) // not there, or of an agent that was killed
		if err := containerdtest.UnmountBelow(s.dir(h)); err != nil {
			t.Error(err)
		}
	}
}

// info is what a host's agent says of the image.
func (s *spread) info(ctx context.Context, h *lab.Host) (agent.ImageInfo, error) {
	images, err := client(h).Images(ctx)
	if err != nil {
		return agent.ImageInfo{}, err
	}
	i := slices.IndexFunc(images, func(im agent.ImageInfo) bool { return im.Ref == s.ref })
	if i < 0 {
		return agent.ImageInfo{}, fmt.Errorf("%s does not have %s", h.Name, s.ref)
	}
	return images[i], nil
}

// holds waits until hosts have a share of the image.
func (s *spread) holds(t *testing.T, share float64, hosts ...*lab.Host) {
	t.Helper()
	g, ctx := errgroup.WithContext(t.Context())
	for _, h := range hosts {
		g.Go(func() error {
			err := poll(ctx, patience, h.Name+" has its blocks", func() error {
				im, err := s.info(ctx, h)
				if err == nil && float64(im.Held) < share*float64(im.Blocks) {
					err = fmt.Errorf("it has %d blocks of %d", im.Held, im.Blocks)
				}
				return err
			})
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, h.Node.AgentLogTail())
			}
			return err
		})
	}
	must(t, g.Wait())
}

// complete waits until hosts have all of the image, and compares its file there with what it should be.
func (s *spread) complete(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	s.holds(t, 1, hosts...)
	s.readable(t, hosts...)
}

// readable compares the image's file on hosts with what it should be.
func (s *spread) readable(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		if got, err := os.ReadFile(s.file(h)); err != nil || !slices.Equal(got, s.data) {
			t.Errorf("%s read %d bytes of %d, or wrong ones: %v", h.Name, len(got), len(s.data), err)
		}
	}
}

// egress checks that not more left the registry since the image is there than a multiple of its size.
func (s *spread) egress(t *testing.T, limit float64) {
	t.Helper()
	after, err := s.Registry().Traffic(t.Context())
	must(t, err)
	times := float64(after.Sub(s.before).Sent) / float64(s.stored)
	t.Logf("the registry sent %.3f times the image", times)
	if times > limit {
		t.Errorf("the registry sent %.3f times the image, want at most %.2f\n%s", times, limit, s.fetched(t.Context()))
	}
}

// fetched says who read how much of the registry, and why that may be, for error messages.
func (s *spread) fetched(ctx context.Context) (text string) {
	for _, h := range s.Hosts() {
		m, err := h.Node.Metrics(ctx)
		text += fmt.Sprintf("%s fetched %.0f bytes in %.0f requests since its start, hedges %.0f, stalls %.0f, duplicates %.0f, %v\n", h.Name,
			m["xylem_fetch_bytes_total"], m["xylem_fetch_requests_total"], m["xylem_peer_hedges_total"], m["xylem_peer_stalls_total"],
			m["xylem_peer_duplicate_blocks_total"], err)
	}
	return text
}

// tree is the image's tree as `xylem tree` shows it on a host.
func (s *spread) tree(ctx context.Context, h *lab.Host) (tree api.Tree, err error) {
	out, err := h.Node.Xylem(ctx, "tree", s.ref, "--output", "json")
	if err != nil {
		return tree, err
	}
	return tree, json.Unmarshal([]byte(out), &tree)
}

// inTree waits until `xylem tree` on a host shows a sound tree of just these hosts.
func (s *spread) inTree(t *testing.T, timeout time.Duration, on *lab.Host, hosts ...*lab.Host) (tree api.Tree) {
	t.Helper()
	eventually(t, timeout, on.Name+" sees the whole tree", func() (err error) {
		if tree, err = s.tree(t.Context(), on); err != nil {
			return err
		}
		return sound(tree, hosts)
	})
	return tree
}

// sound returns an error unless the hosts and nobody else are in the tree, and in each stripe one of them is the root and all others are
// below it.
func sound(tree api.Tree, hosts []*lab.Host) error {
	parents := map[string][]string{"": nil}
	for _, m := range tree.Members {
		if !slices.ContainsFunc(hosts, func(h *lab.Host) bool { return is(m, h) }) {
			return fmt.Errorf("%v is in the tree", m.Agent.Addrs)
		}
		parents[m.Agent.ID] = m.Parents
	}
	if len(tree.Members) != len(hosts) {
		return fmt.Errorf("%d members for %d hosts", len(tree.Members), len(hosts))
	}
	for stripe := range tree.Stripes {
		roots := 0
		for _, m := range tree.Members {
			if len(m.Parents) != tree.Stripes {
				return fmt.Errorf("%v has parents %v in %d stripes", m.Agent.Addrs, m.Parents, tree.Stripes)
			}
			if m.Parents[stripe] == "" {
				roots++
			}
			at := m.Agent.ID
			for range tree.Members {
				up, known := parents[at]
				if !known {
					return fmt.Errorf("%v is fed by %s, who is not in the tree", m.Agent.Addrs, at)
				}
				if at != "" {
					at = up[stripe]
				}
			}
			if at != "" {
				return fmt.Errorf("%v does not hang below the root of stripe %d", m.Agent.Addrs, stripe)
			}
		}
		if roots != 1 {
			return fmt.Errorf("stripe %d has %d roots", stripe, roots)
		}
	}
	return nil
}

func is(m api.TreeMember, h *lab.Host) bool {
	return len(m.Agent.Addrs) == 1 && m.Agent.Addrs[0].Addr() == h.Addr
}

// rootOf is the root of stripe 0.
func rootOf(_ api.Tree, m api.TreeMember) bool { return m.Parents[0] == "" }

// innerOf is somebody who feeds others but is no root.
func innerOf(t api.Tree, m api.TreeMember) bool {
	return !slices.Contains(m.Parents, "") && slices.ContainsFunc(t.Members, func(c api.TreeMember) bool { return slices.Contains(c.Parents, m.Agent.ID) })
}

// choose waits until a host is what is looked for in the tree of all hosts, and returns it and the others.
func (s *spread) choose(t *testing.T, match func(api.Tree, api.TreeMember) bool) (chosen *lab.Host, others []*lab.Host) {
	t.Helper()
	eventually(t, patience, "somebody to choose is in the tree", func() error {
		tree, err := s.tree(t.Context(), s.Hosts()[0])
		if err == nil {
			err = sound(tree, s.Hosts())
		}
		if err != nil {
			return err
		}
		i := slices.IndexFunc(tree.Members, func(m api.TreeMember) bool { return match(tree, m) })
		if i < 0 {
			return errors.New("nobody matches")
		}
		at := slices.IndexFunc(s.Hosts(), func(h *lab.Host) bool { return is(tree.Members[i], h) })
		chosen, others = s.Hosts()[at], slices.Delete(slices.Clone(s.Hosts()), at, at+1)
		return nil
	})
	return chosen, others
}

// killHalfWay kills a host's agent when it has half of the image.
func (s *spread) killHalfWay(t *testing.T, h *lab.Host) {
	t.Helper()
	s.holds(t, 0.5, h)
	if im, err := s.info(t.Context(), h); err == nil {
		t.Logf("%s is killed with %d blocks of %d", h.Name, im.Held, im.Blocks)
	}
	must(t, h.Node.KillAgent())
}

// revive starts a killed agent again, and the program that used the image.
func (s *spread) revive(t *testing.T, h *lab.Host) {
	t.Helper()
	must(t, containerdtest.UnmountBelow(s.dir(h)))
	must(t, h.Restart(t.Context()))
	s.mount(t, h)
}
