package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
)

// ConversionLease is how long an agent may convert an image without asking again.
const ConversionLease = 30 * time.Second

// HolderTimeout is how long an agent that keeps converted images for others may be silent before they count as lost.
const HolderTimeout = time.Minute

// ErrNoLease says that an agent reports a conversion that is not, or no longer, its own.
var ErrNoLease = errors.New("the conversion is not this agent's")

// ConversionState is what the cluster knows of an image's conversion to a block image.
type ConversionState string

const (
	ConversionNone   ConversionState = "none"   // nobody converts it, and the asker does not want to
	ConversionYours  ConversionState = "yours"  // the asker converts it, until ConversionLease has passed: asking again renews it
	ConversionTheirs ConversionState = "theirs" // another agent converts it: ask again later
	ConversionDone   ConversionState = "done"   // there is a block image
	ConversionFailed ConversionState = "failed" // it could not be converted, and is not tried again before a time
)

// ConvertRequest asks who converts an image.
type ConvertRequest struct {
	Source digest.Digest `json:"source"` // of the image's manifest
	// Willing says that the asker converts the image now if nobody else does.
	Willing bool `json:"willing,omitempty"`
	// Missing is a block image that is not where an earlier answer said. It counts as lost.
	Missing digest.Digest `json:"missing,omitempty"`
}

// Conversion answers a ConvertRequest.
type Conversion struct {
	State ConversionState `json:"state"`
	// Image is the block image's manifest, if there is one.
	Image digest.Digest `json:"image,omitempty"`
	// Pushed is the repository where the block image is, as "host/name". If it is empty, Holder gives it to others.
	Pushed string `json:"pushed,omitempty"`
	Holder *Peer  `json:"holder,omitempty"`
	// Why the conversion failed, and when it may be tried again.
	Why       string    `json:"why,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
}

// ConvertedRequest says how a conversion ended. Without Image and Failed it gives the lease back, for another agent to try.
type ConvertedRequest struct {
	Source digest.Digest `json:"source"`
	Image  digest.Digest `json:"image,omitempty"`  // the block image's manifest
	Pushed string        `json:"pushed,omitempty"` // the repository where it is; if empty, Agent keeps it for others
	Agent  Peer          `json:"agent"`
	Failed string        `json:"failed,omitempty"` // why
}

// HoldingRequest says that an agent still keeps what it converted, and where. It is due before HolderTimeout has passed.
type HoldingRequest struct {
	Agent Peer `json:"agent"`
}

// Conversion asks who converts an image, and where its block image is.
func (c *Client) Conversion(ctx context.Context, r ConvertRequest) (answer Conversion, err error) {
	return answer, c.ask(ctx, PathConvert, r, &answer)
}

// Converted reports how a conversion ended. The error is ErrNoLease if another agent converts the image now.
func (c *Client) Converted(ctx context.Context, r ConvertedRequest) error {
	err := c.ask(ctx, PathConverted, r, nil)
	if statusOf(err) == http.StatusPreconditionFailed {
		err = fmt.Errorf("%w: %w", ErrNoLease, err)
	}
	return err
}

// Holding says that the agent still keeps what it converted.
func (c *Client) Holding(ctx context.Context, r HoldingRequest) error {
	return c.ask(ctx, PathHolding, r, nil)
}

// ask makes a call to some scheduler, on the session with it.
func (c *Client) ask(ctx context.Context, path string, request, answer any) error {
	l := c.anyLink()
	if l == nil {
		return ErrUnreachable
	}
	return call(ctx, l.http, http.MethodPost, l.url+path, l.hello.Session, request, answer)
}
