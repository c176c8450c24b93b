package nodelab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Overlayfs and Xylem are the snapshotters that are compared.
const (
	Overlayfs = "overlayfs"
	Xylem     = "xylem"
)

// Record writes the startup profile of ref to a file: what its first start on a new node reads.
func (l *Lab) Record(ctx context.Context, ref, file string) (err error) {
	node, err := l.Node(ctx, NodeConfig{Xylem: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	if _, err := node.Xylem(ctx, "record", "start", ref); err != nil {
		return err
	}
	if _, _, err := node.Run(ctx, Xylem, ref); err != nil {
		return err
	}
	_, err = node.Xylem(ctx, "record", "stop", ref, "--file", file)
	return err
}

// Contender is one way to start an image.
type Contender struct {
	Snapshotter string
	Ref         string
}

// Measured are the samples of one Contender.
type Measured struct {
	Cold    []time.Duration // pull and start on a machine without the image, page cache empty
	Warm    []time.Duration // start again there
	Fetched []float64       // bytes that the agent read from the registry for a cold start; xylem only
}

// CompareStarts measures them in turn, n times each: cold on a new node every time, then warm on the last nodes. reference
// may be nil; it is called after each round of warm starts, for what is to be compared with them.
func (l *Lab) CompareStarts(ctx context.Context, n int, reference func(context.Context) error, contenders ...Contender) (_ []Measured, err error) {
	results := make([]Measured, len(contenders))
	nodes := make([]*Node, len(contenders))
	defer func() {
		for _, node := range nodes {
			if node != nil {
				err = errors.Join(err, node.Close())
			}
		}
	}()
	for round := range n {
		for i, s := range contenders {
			if nodes[i] != nil {
				err := nodes[i].Close()
				if nodes[i] = nil; err != nil {
					return nil, err
				}
			}
			if nodes[i], err = l.Node(ctx, NodeConfig{Xylem: s.Snapshotter == Xylem}); err != nil {
				return nil, err
			}
			if err := nodes[i].cold(ctx, s, &results[i]); err != nil {
				return nil, err
			}
			l.Logf("cold start %d of %d, %-9s %s: %.2f s", round+1, n, s.Snapshotter, s.Ref, results[i].Cold[round].Seconds())
		}
	}
	return results, l.warm(ctx, n, reference, nodes, contenders, results)
}

func (l *Lab) warm(ctx context.Context, n int, reference func(context.Context) error, nodes []*Node, contenders []Contender, results []Measured) error {
	for range n {
		for i, s := range contenders {
			took, _, err := nodes[i].Run(ctx, s.Snapshotter, s.Ref)
			if err != nil {
				return err
			}
			results[i].Warm = append(results[i].Warm, took)
		}
		if reference == nil {
			continue
		}
		if err := reference(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) cold(ctx context.Context, s Contender, result *Measured) error {
	took, err := n.Cold(ctx, s.Snapshotter, s.Ref)
	if err != nil {
		return err
	}
	result.Cold = append(result.Cold, took)
	if n.agent == nil {
		return nil
	}
	if err := n.Mounted(ctx, s.Ref); err != nil {
		return err
	}
	metrics, err := n.Metrics(ctx)
	if err != nil {
		return err
	}
	result.Fetched = append(result.Fetched, metrics["xylem_fetch_bytes_total"])
	return nil
}

// Mounted returns an error if the agent did not mount ref's block image: if the image was downloaded and unpacked as ever.
func (n *Node) Mounted(ctx context.Context, ref string) error {
	images, err := n.Xylem(ctx, "images", "--output", "json")
	if err != nil {
		return err
	}
	if !strings.Contains(images, ref) {
		return fmt.Errorf("%s was not mounted from a block image; the agent has %s, its log ends with:\n%s", ref, images, tail(n.AgentLog()))
	}
	return nil
}

// Logf writes a line to the lab's log.
func (l *Lab) Logf(format string, args ...any) { fmt.Fprintf(l.log, format+"\n", args...) }
