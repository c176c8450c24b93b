package invoke

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/placement"
)

const (
	// maxWarmed bounds the colours that an instance is told of at once. With it the payload, in which a colour takes little more than
	// its length, is small.
	maxWarmed = 500
	// maxWarmedColour is how long a colour may be to be told, in bytes.
	maxWarmedColour = 64
	// warmTimeout bounds the time that an instance takes to hear of them.
	warmTimeout = 10 * time.Second
)

// handOver tells instances which colours have become theirs, if the function wants to know. Callers hold mu.
func (p *pool) handOver(moves placement.Moves) {
	if p.fn.Warm == "" {
		return
	}
	colours := map[placement.Instance][]string{}
	for _, m := range moves {
		for _, colour := range m.Colours {
			if len(colour) <= maxWarmedColour && len(colours[m.To]) < maxWarmed {
				colours[m.To] = append(colours[m.To], colour)
			}
		}
	}
	for number, list := range colours {
		if i := p.instances[number]; i != nil && len(list) > 0 {
			p.d.do(func() { p.warm(i, list) })
		}
	}
}

// warm tells an instance of its colours. It takes no place of the instance, and what goes wrong only costs time later.
func (p *pool) warm(i *instance, colours []string) {
	ctx, cancel := context.WithTimeout(p.d.running, warmTimeout)
	defer cancel()
	text, err := json.Marshal(api.Warming{Colors: colours})
	if err == nil {
		header := http.Header{"Content-Type": {"application/json"}, api.HeaderInvocation: {newRequestID()}, api.HeaderPath: {p.fn.Warm}}
		_, err = i.node.Exchange(ctx, i.id, header, text)
	}
	if err != nil {
		p.d.cfg.Log.Debug("instance not told of its colors", "function", p.fn.ID(), "instance", i.id, "colors", len(colours), "err", err)
	}
}
