package scheduler_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

func members(t testing.TB, d *daemon, n int, image int) []*node {
	t.Helper()
	var all []*node
	for range n {
		all = append(all, newNode(t, d.token(t), d.url))
	}
	for _, a := range all {
		a.enter(imageName(image))
	}
	return all
}

// The way from a token to a place in a tree and out of it again, with the embedded etcd.
func TestAgentsFindTheirPlaces(t *testing.T) {
	d := start(t, config(t), nil)
	nodes := members(t, d, 8, 1)
	eventually(t, "places", func() error { return consistent(imageName(1), nodes) })
	if n := nodes[0].client; n.Stripes() != 2 || !n.Reachable() {
		t.Errorf("%d stripes, reachable: %t", n.Stripes(), n.Reachable())
	}
	if err := nodes[0].client.Admit(nodes[1].id, nodes[1].client.Credential()); err != nil {
		t.Error(err)
	}
	if err := nodes[0].client.Admit(nodes[2].id, nodes[1].client.Credential()); !errors.Is(err, api.ErrCredential) {
		t.Errorf("another's credential: %v", err)
	}
	v, err := nodes[3].client.Tree(t.Context(), imageName(1))
	if err != nil || len(v.Members) != 8 || v.Owner != d.url || v.Ref == "" {
		t.Errorf("%+v %v", v, err)
	}
	eventually(t, "progress of all", func() error {
		v, err := nodes[3].client.Tree(t.Context(), imageName(1))
		for _, m := range v.Members {
			if !slices.Equal(m.Held, []int{0, 0}) || !slices.Equal(m.Total, []int{3, 3}) {
				return errors.Join(err, fmt.Errorf("%s has %d of %d", m.Agent.ID, m.Held, m.Total))
			}
		}
		return err
	})
	nodes[0].client.Leave(imageName(1))
	eventually(t, "places without one", func() error { return consistent(imageName(1), nodes[1:]) })
	trees, err := nodes[0].client.Trees(t.Context())
	if err != nil || len(trees) != 1 || trees[0].Image != imageName(1) {
		t.Errorf("%+v %v", trees, err)
	}
	for _, n := range nodes[1:] {
		n.client.Leave(imageName(1))
	}
	eventually(t, "no tree", func() error {
		if trees, err := nodes[0].client.Trees(t.Context()); err != nil || len(trees) > 0 {
			return errors.Join(err, errors.New("there is one"))
		}
		return nil
	})
	if _, err := nodes[3].client.Tree(t.Context(), imageName(1)); !errors.Is(err, api.ErrNotFound) {
		t.Errorf("a tree without members: %v", err)
	}
}

// A scheduler that is given another store is one of another cluster: the join token that it leaves must be of that one.
func TestTokenOfAnotherCluster(t *testing.T) {
	cfg := config(t)
	d := start(t, cfg, store.NewMemory())
	former := d.token(t)
	d.stop()
	d = start(t, cfg, store.NewMemory())
	if d.token(t) == former {
		t.Error("the token of the former cluster is still there")
	}
	a := newNode(t, d.token(t), d.url)
	eventually(t, "a session", func() error { return reachable(a) })
}
