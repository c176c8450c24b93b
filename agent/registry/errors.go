package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/xylem-project/xylem/blockfmt"
)

// errUnrouted is a 404 that is not in a registry's words: it does not know the path, rather than the thing.
var errUnrouted = errors.New("no such endpoint")

// statusError makes an error of an answer that is no success. It reads the beginning of the body for the registry's
// own words and leaves the connection fit for reuse.
func statusError(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10)) // a reason is welcome, not needed
	var body struct {
		Errors []struct{ Code, Message string }
	}
	reason := ""
	if json.Unmarshal(text, &body) == nil && len(body.Errors) > 0 {
		reason = fmt.Sprintf(" (%.40q: %.120q)", body.Errors[0].Code, body.Errors[0].Message)
	}
	if reason == "" && resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("status 404, %w: %w", errUnrouted, blockfmt.ErrNotFound)
	}
	return fmt.Errorf("status %d%s: %w", resp.StatusCode, reason, statusKind(resp.StatusCode))
}

func statusKind(status int) error {
	switch {
	case status == http.StatusNotFound || status == http.StatusGone:
		return blockfmt.ErrNotFound
	case status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusProxyAuthRequired:
		return blockfmt.ErrDenied
	case status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status == http.StatusTooEarly:
		return blockfmt.ErrTransient
	case status == http.StatusRequestedRangeNotSatisfiable: // a blob of that digest has that range
		return blockfmt.ErrCorrupt
	case status >= 500 && status != http.StatusNotImplemented:
		return blockfmt.ErrTransient
	}
	return blockfmt.ErrUnsupported
}

// transportError gives an error of the connection its kind: what the caller's context says, else ErrTransient.
func transportError(ctx context.Context, host string, err error) error {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); cause != ctx.Err() {
			return cause
		}
		return fmt.Errorf("%s: %w", host, ctx.Err())
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err // without the URL, which may hold a signature
	}
	if hasKind(err) {
		return err
	}
	return fmt.Errorf("%s: %w: %w", host, err, blockfmt.ErrTransient)
}

func hasKind(err error) bool {
	for _, kind := range []error{blockfmt.ErrNotFound, blockfmt.ErrCorrupt, blockfmt.ErrTransient, blockfmt.ErrDenied, blockfmt.ErrUnsupported} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// both joins two errors in one line; either may be nil.
func both(a, b error) error {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return fmt.Errorf("%w; %w", a, b)
}
