package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// request is what is asked of a repository.
type request struct {
	method string
	url    string
	header http.Header
	blob   string // digest of the blob that is asked for, whose storage may be remembered
	// anyStatus takes the registry's refusals (4xx but for those that are worth another try) for answers.
	anyStatus bool
	// authorize sends the request in place of sendAuthorized, if it is not nil.
	authorize func(context.Context, request) (*http.Response, error)
}

// place is the URL for messages: without the query, which may hold a signature.
func (r request) place() string {
	place, _, _ := strings.Cut(r.url, "?")
	return place
}

// call sends req until consume has a success to work on and returns no ErrTransient, at most Config.Attempts times. The
// body is closed afterwards, unless consume returns errKeep.
func (r *Repository) call(ctx context.Context, req request, consume func(*http.Response) error) error {
	backoff := r.client.backoff(r.host)
	for attempt := 1; ; attempt++ {
		if err := r.rest(ctx, backoff.wait(time.Now())); err != nil {
			return err
		}
		resp, err := r.send(ctx, req)
		if err == nil {
			err = consume(resp)
			if errors.Is(err, errKeep) {
				backoff.succeeded()
				return nil
			}
			_ = resp.Body.Close() // read or given up
		}
		var plugin *PluginError // another try would find the same failure, and the registry is not to blame
		if !errors.Is(err, blockfmt.ErrTransient) || errors.As(err, &plugin) {
			if err == nil || hasKind(err) {
				backoff.succeeded()
			}
			return err
		}
		var busy *busyError
		errors.As(err, &busy)
		if backoff.failed(time.Now(), busy.delay()) {
			r.client.cfg.Logger.Info("registry does not answer as it should, backing off", "registry", r.host, "error", err)
		}
		if attempt >= r.client.cfg.Attempts || ctx.Err() != nil {
			return err
		}
	}
}

// errKeep tells call that the body stays open.
var errKeep = errors.New("body is kept")

// busyError is a refusal with the time that the registry asks to be left alone.
type busyError struct {
	error
	after time.Duration
}

func (e *busyError) Unwrap() error { return e.error }

// RetryAfter returns the seconds after which the registry wants to be asked again.
func (e *busyError) RetryAfter() int { return int((e.after + time.Second - 1) / time.Second) }

func (e *busyError) delay() time.Duration {
	if e == nil {
		return 0
	}
	return e.after
}

// rest waits d, or fails at once if ctx or the time for a call ends earlier.
func (r *Repository) rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	if end, ok := ctx.Deadline(); d > r.client.cfg.Timeout || (ok && time.Until(end) < d) {
		return &busyError{fmt.Errorf("%s does not answer, next try in %v: %w", r.host, d.Round(time.Millisecond), blockfmt.ErrTransient), d}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return transportError(ctx, r.host, ctx.Err())
	}
}

// send sends req to where the registry redirected the same thing to before, else to the registry.
func (r *Repository) send(ctx context.Context, req request) (*http.Response, error) {
	if req.authorize != nil {
		return req.authorize(ctx, req)
	}
	if req.blob == "" {
		return r.sendAuthorized(ctx, req, r.client.auth)
	}
	key := r.String() + "@" + req.blob
	if storage := r.client.redirects.get(key); storage != "" {
		direct := req
		direct.url = storage
		resp, err := r.sendOnce(ctx, direct, "")
		if err == nil || ctx.Err() != nil {
			return resp, err
		}
		r.client.redirects.forget(key)
	}
	resp, err := r.sendAuthorized(ctx, req, r.client.auth)
	if err == nil && resp.Request.URL.String() != req.url {
		r.client.redirects.set(key, resp.Request.URL.String(), redirectLife)
	}
	return resp, err
}

// sendAuthorized sends req once, or twice if the registry asks for authentication, and once more if a plugin may have replaced
// the credentials that it refuses.
func (r *Repository) sendAuthorized(ctx context.Context, req request, by *authorizer) (*http.Response, error) {
	auth, err := by.header(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.method, req.place(), err)
	}
	for tries := 1; ; tries++ {
		resp, err := r.sendOnce(ctx, req, auth)
		var c *challengeError
		if !errors.As(err, &c) || tries == 3 || tries == 2 && !by.outdated(ctx, r, auth) {
			return resp, err
		}
		if auth, err = by.challenged(ctx, r, auth, c.header); err != nil {
			return nil, fmt.Errorf("%s %s: %w", req.method, req.place(), err)
		}
	}
}

// challengeError is a 401 of the registry itself.
type challengeError struct {
	error
	header http.Header
}

func (e *challengeError) Unwrap() error { return e.error }

// sendOnce sends req and returns an answer of status 2xx. A body without progress for Config.StallTimeout fails.
func (r *Repository) sendOnce(ctx context.Context, req request, auth string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	hr, err := http.NewRequestWithContext(sentBy(ctx, r.host), req.method, req.url, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("%s: %w: %w", req.place(), err, blockfmt.ErrUnsupported)
	}
	for k, v := range req.header {
		hr.Header[k] = v
	}
	hr.Header.Set("User-Agent", r.client.cfg.UserAgent)
	if auth != "" {
		hr.Header.Set("Authorization", auth)
	}
	stall := r.client.cfg.StallTimeout
	stalled := fmt.Errorf("%s %s: no progress within %v: %w", req.method, req.place(), stall, blockfmt.ErrTransient)
	timer := time.AfterFunc(stall, func() { cancel(stalled) })
	resp, err := r.client.http.Do(hr)
	if err != nil {
		timer.Stop()
		defer cancel(nil)
		return nil, transportError(ctx, r.host, err)
	}
	timer.Reset(stall)
	resp.Body = &watchedBody{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, stall: stall, host: r.host, limits: r.client.limits.of(r.host)}
	if resp.StatusCode/100 == 2 || (req.anyStatus && resp.StatusCode/100 == 4 && statusKind(resp.StatusCode) != blockfmt.ErrTransient && resp.Request.URL.Host == hr.URL.Host) {
		return resp, nil
	}
	defer resp.Body.Close()
	err = fmt.Errorf("%s %s: %w", req.method, req.place(), statusError(resp))
	after := retryAfter(resp.Header, time.Now())
	switch {
	case req.anyStatus && resp.Request.URL.Host != hr.URL.Host && !errors.Is(err, blockfmt.ErrTransient):
		err = fmt.Errorf("storage of %s: %v: %w", r.host, err, blockfmt.ErrTransient) // it says nothing of the blob
	case resp.StatusCode == http.StatusUnauthorized && resp.Request.URL.Host == hr.URL.Host:
		err = &challengeError{err, resp.Header}
	case after > 0 && errors.Is(err, blockfmt.ErrTransient):
		err = &busyError{err, after}
	}
	return nil, err
}

// watchedBody cancels the request when no byte arrives for stall, and gives read errors their kind: a body that ends early
// or stalls is ErrTransient.
type watchedBody struct {
	body   io.ReadCloser
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	host   string
	limits throttle
	outer  context.CancelCauseFunc // of the call that the body outlives, or nil
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall) // time that the reader spent elsewhere does not count
	n, err := b.body.Read(p[:b.limits.part(len(p))])
	b.timer.Stop()
	if err != nil && err != io.EOF {
		return n, transportError(b.ctx, b.host, err)
	}
	if slow := b.limits.wait(b.ctx, b.host, n); slow != nil {
		return n, slow
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	err := b.body.Close()
	b.cancel(nil)
	if b.outer != nil {
		b.outer(nil)
	}
	return err
}
