package invoke

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
)

// logQuery says which lines of a function are wanted.
type logQuery struct {
	version int // 0: all
	limit   int
}

// maxLines bounds the lines of an answer.
const maxLines = 10_000

func logQueryOf(r *http.Request) (q logQuery, err error) {
	q.limit = 100
	for name, to := range map[string]*int{"version": &q.version, "limit": &q.limit} {
		if text := r.URL.Query().Get(name); text != "" {
			if *to, err = strconv.Atoi(text); err != nil || *to < 0 {
				return q, fmt.Errorf("%w: %s=%.20q, want a number", errRequest, name, text)
			}
		}
	}
	q.limit = min(q.limit, maxLines)
	return q, nil
}

// newest returns the newest lines of a function on the nodes, oldest first. Nodes that do not answer are left out if others do.
func newest(ctx context.Context, nodes []*fleet.Node, namespace, name string, q logQuery) ([]api.LogLine, error) {
	var mu sync.Mutex
	var all []api.LogLine
	var failed error
	var asked sync.WaitGroup
	for _, n := range nodes {
		asked.Go(func() {
			lines, err := linesOf(ctx, n, namespace, name, q)
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, lines...), errors.Join(failed, err)
		})
	}
	asked.Wait()
	if len(all) == 0 && failed != nil {
		return nil, failed
	}
	slices.SortStableFunc(all, func(a, b api.LogLine) int { return a.Time.Compare(b.Time) })
	return all[max(0, len(all)-q.limit):], nil
}

func linesOf(ctx context.Context, n *fleet.Node, namespace, name string, q logQuery) (lines []api.LogLine, err error) {
	body, err := n.Logs(ctx, namespace, name, q.version, q.limit)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	from := json.NewDecoder(io.LimitReader(body, 64<<20))
	for len(lines) < q.limit {
		var l api.LogLine
		if err := from.Decode(&l); errors.Is(err, io.EOF) {
			return lines, nil
		} else if err != nil {
			return lines, fmt.Errorf("logs of node %s: %w", n.Peer, err)
		}
		lines = append(lines, l)
	}
	return lines, nil
}
