package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/scheduler/api"
)

func newTree(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "tree [REF]", Short: "Show who feeds whom, of all images or of one", Args: usage(cobra.MaximumNArgs(1)),
		Long: "Tree lists the function trees of the cluster, or draws the live tree of one image: in each stripe who feeds whom, how much of\n" +
			"the image each one has, and how fast it comes. REF is a reference or the digest of a block image. The node's agent is asked.",
	}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		trees, err := a.client().Trees(cmd.Context())
		if err != nil {
			return err
		}
		if len(args) == 0 {
			return output.print(a.out, trees, func(w io.Writer) {
				row(w, "REF", "BLOCK IMAGE", "SCHEDULER")
				for _, t := range trees {
					row(w, t.Ref, shortDigest(t.Image), t.Owner)
				}
			})
		}
		t, err := a.findTree(cmd.Context(), trees, args[0])
		if err != nil {
			return err
		}
		return output.print(a.out, t, func(w io.Writer) { drawTree(w, t) })
	}
	return cmd
}

func (a *app) findTree(ctx context.Context, trees []api.TreeInfo, ref string) (api.Tree, error) {
	i := slices.IndexFunc(trees, func(t api.TreeInfo) bool {
		return t.Ref == ref || t.Image.String() == ref || t.Image.Validate() == nil && len(ref) >= 8 && strings.HasPrefix(t.Image.Encoded(), ref)
	})
	if i < 0 {
		return api.Tree{}, fmt.Errorf("no tree of %s: no agent needs it now; `xylem tree` lists the trees there are", ref)
	}
	return a.client().Tree(ctx, trees[i].Image)
}

// drawTree draws every stripe of a tree.
func drawTree(w io.Writer, t api.Tree) {
	fmt.Fprintf(w, "%s  %s  %d members\n", cmp.Or(t.Ref, "(no name)"), shortDigest(t.Image), len(t.Members))
	for stripe := range t.Stripes {
		fmt.Fprintln(w)
		d := drawing{w: w, stripe: stripe, children: map[string][]api.TreeMember{}}
		for _, m := range t.Members {
			d.children[m.Parents[stripe]] = append(d.children[m.Parents[stripe]], m)
		}
		d.draw("", fmt.Sprintf("registry, stripe %d\tAGENT\tBLOCKS\tRATE", stripe), "", "")
	}
}

// drawing is one stripe while it is drawn.
type drawing struct {
	w        io.Writer
	stripe   int
	children map[string][]api.TreeMember // by who feeds them
}

// draw writes the line of a node after a prefix, and those of its children after the indent that is theirs.
func (d *drawing) draw(id, line, prefix, indent string) {
	fmt.Fprintf(d.w, "%s%s\n", prefix, line)
	children := d.children[id]
	delete(d.children, id) // a tree that changes while it is told could have a loop
	slices.SortFunc(children, func(a, b api.TreeMember) int { return strings.Compare(machine(a), machine(b)) })
	for i, c := range children {
		first, rest := "├─ ", "│  "
		if i == len(children)-1 {
			first, rest = "└─ ", "   "
		}
		d.draw(c.Agent.ID, d.member(c), indent+first, indent+rest)
	}
}

// member describes a node in the columns after its name.
func (d *drawing) member(m api.TreeMember) string {
	line := fmt.Sprintf("%s\t%s", machine(m), shortPeer(m.Agent.ID))
	if d.stripe < len(m.Held) && d.stripe < len(m.Total) && m.Total[d.stripe] > 0 {
		line += fmt.Sprintf("\t%d/%d", m.Held[d.stripe], m.Total[d.stripe])
	} else {
		line += "\t-"
	}
	if d.stripe < len(m.Rates) {
		line += fmt.Sprintf("\t%s/s", bytesText(m.Rates[d.stripe]))
	}
	if m.Role != "" && m.Role != "any" {
		line += "\t" + m.Role
	}
	return line
}

// machine is how people tell machines apart.
func machine(m api.TreeMember) string {
	if len(m.Agent.Addrs) == 0 {
		return shortPeer(m.Agent.ID)
	}
	return m.Agent.Addrs[0].Addr().String()
}

// shortPeer is enough of a peer ID to tell one from another; they all begin alike.
func shortPeer(id string) string { return id[max(0, len(id)-8):] }
