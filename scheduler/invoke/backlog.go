package invoke

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/store"
)

// backlog is the asynchronous invocations of a function. Guarded by Events.mu.
type backlog struct {
	events  *Events
	waiting byDue
	known   map[string]bool // by ID: waiting or running
	running int
	timer   *time.Timer
}

// byDue is a heap of events, the first due first.
type byDue []*event

func (h byDue) Len() int           { return len(h) }
func (h byDue) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h byDue) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byDue) Push(x any)        { *h = append(*h, x.(*event)) }
func (h *byDue) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

func (l *backlog) push(ev *event) { heap.Push(&l.waiting, ev) }

// pump runs what is due, as far as there may run more.
func (l *backlog) pump() {
	ctx := l.events.running
	for ctx != nil && len(l.waiting) > 0 && l.running < maxAtOnce {
		if wait := time.Until(l.waiting[0].due); wait > 0 {
			l.wake(wait)
			return
		}
		ev := heap.Pop(&l.waiting).(*event)
		l.running++
		l.events.tasks.Go(func() { l.do(ctx, ev) })
	}
}

// wake has pump called in a while.
func (l *backlog) wake(after time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
	}
	l.timer = time.AfterFunc(after, func() {
		l.events.mu.Lock()
		defer l.events.mu.Unlock()
		l.pump()
	})
}

// do runs an event once, and takes it out of the store or plans the next attempt.
func (l *backlog) do(ctx context.Context, ev *event) {
	e := l.events
	err := e.attempt(ctx, ev)
	again := false
	switch {
	case ctx.Err() != nil: // the next scheduler runs it
	case err == nil:
		e.finish(ctx, ev)
	default:
		again = e.retry(ctx, ev, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	l.running--
	if again {
		l.push(ev)
	} else {
		delete(l.known, ev.ID)
		e.count--
		e.bytes -= len(ev.Payload)
	}
	l.pump()
}

// errFunction says that the function itself failed.
var errFunction = errors.New("the function failed")

// attempt invokes the function and reads its answer.
func (e *Events) attempt(ctx context.Context, ev *event) error {
	fn, err := e.cfg.Functions.Lookup(ev.Namespace, ev.Name, ev.Qualifier)
	if errors.Is(err, function.ErrNotFound) { // the version went meanwhile
		fn, err = e.cfg.Functions.Lookup(ev.Namespace, ev.Name, "")
	}
	if err != nil {
		return err
	}
	header := ev.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	a, err := e.cfg.Invoke(ctx, Invocation{ID: ev.ID, Function: fn, Colour: ev.Colour, Header: header, Payload: ev.Payload, Whole: true})
	if err != nil {
		return err
	}
	defer a.Body.Close()
	text, err := answerOf(a)
	switch {
	case err != nil:
		return err
	case a.FunctionError() != "":
		return fmt.Errorf("%w: %s: %.1000s", errFunction, a.FunctionError(), text)
	case a.Status >= 300:
		return fmt.Errorf("%w: status %d: %.1000s", errFunction, a.Status, text)
	}
	return nil
}

// Pauses between attempts double from the first to the last.
const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
)

// retry plans the next attempt of an event, or sends it where failures go. It returns whether there is another.
func (e *Events) retry(ctx context.Context, ev *event, cause error) bool {
	fn, err := e.cfg.Functions.Lookup(ev.Namespace, ev.Name, "")
	if err != nil && !errors.Is(err, function.ErrNotReady) {
		return !e.bury(ctx, ev, api.Function{}, cause)
	}
	if isOurs(cause) { // which is not counted: the function had no chance
		ev.due = time.Now().Add(firstRetry)
	} else {
		ev.Attempts++
		ev.due = time.Now().Add(min(lastRetry, firstRetry<<min(ev.Attempts-1, 16)))
		if ev.Attempts > max(0, fn.Retries) {
			return !e.bury(ctx, ev, fn, cause)
		}
		e.keep(ctx, ev)
	}
	if err == nil && time.Since(ev.Accepted) > fn.MaxAge.Duration {
		return !e.bury(ctx, ev, fn, fmt.Errorf("older than %v: %w", fn.MaxAge, cause))
	}
	e.cfg.Log.Debug("asynchronous invocation is tried again", "function", ev.Namespace+"/"+ev.Name, "invocation", ev.ID, "attempts", ev.Attempts, "err", cause)
	return true
}

// isOurs says whether the platform failed before the function ran.
func isOurs(err error) bool {
	for _, kind := range []error{ErrOverload, ErrClosed, fleet.ErrNoRoom, fleet.ErrNoNodes, function.ErrNotReady} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// keep writes down how often an event was tried. If that fails, it may be tried more often.
func (e *Events) keep(ctx context.Context, ev *event) {
	if err := e.write(ctx, ev); err != nil {
		e.cfg.Log.Warn("attempts of an asynchronous invocation are not kept", "invocation", ev.ID, "err", err)
	}
}

// headerDeadLetter marks dead letters, so that one which fails is not sent on for ever.
const headerDeadLetter = "Dead-Letter"

// deadLetter is what a function gets that failures go to, in the form of AWS's destinations.
type deadLetter struct {
	Version        string      `json:"version"`
	Timestamp      time.Time   `json:"timestamp"`
	RequestContext deadContext `json:"requestContext"`
	RequestPayload any         `json:"requestPayload"` // JSON as it is, anything else as text
	Error          string      `json:"error"`
}

type deadContext struct {
	RequestID   string `json:"requestId"`
	FunctionARN string `json:"functionArn"`
	Condition   string `json:"condition"`
	Attempts    int    `json:"approximateInvokeCount"`
}

// bury gives up an event: it goes to the function's dead letter function, if there is one, or into the log. It returns false if it has to
// be tried again, because it could not.
func (e *Events) bury(ctx context.Context, ev *event, fn api.Function, cause error) bool {
	e.cfg.Log.Error("asynchronous invocation failed for good", "function", ev.Namespace+"/"+ev.Name, "invocation", ev.ID,
		"attempts", ev.Attempts, "deadLetter", fn.DeadLetter, "err", cause)
	if fn.DeadLetter != "" && ev.Header.Get(headerDeadLetter) == "" {
		if err := e.deliver(ctx, ev, fn, cause); err != nil {
			e.cfg.Log.Warn("dead letter not delivered, trying again", "function", fn.DeadLetter, "invocation", ev.ID, "err", err)
			ev.due = time.Now().Add(lastRetry)
			return errors.Is(err, function.ErrNotFound) && e.finish(ctx, ev)
		}
	}
	return e.finish(ctx, ev)
}

func (e *Events) deliver(ctx context.Context, ev *event, fn api.Function, cause error) error {
	target, err := e.cfg.Functions.Lookup(ev.Namespace, fn.DeadLetter, "")
	if err != nil {
		return err
	}
	var payload any = json.RawMessage(ev.Payload)
	if !json.Valid(ev.Payload) {
		payload = string(ev.Payload)
	}
	text, err := json.Marshal(deadLetter{
		Version: "1.0", Timestamp: time.Now().UTC(), RequestPayload: payload, Error: cause.Error(),
		RequestContext: deadContext{RequestID: ev.ID, FunctionARN: fn.ARN(), Condition: "RetriesExhausted", Attempts: ev.Attempts},
	})
	if err != nil {
		return err
	}
	return e.Accept(ctx, Invocation{ID: newRequestID(), Function: target, Payload: text,
		Header: http.Header{"Content-Type": {"application/json"}, headerDeadLetter: {"1"}},
	})
}

// finish takes an event out of the store. Until it could, it waits: the event would run again.
func (e *Events) finish(ctx context.Context, ev *event) bool {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		_, err := e.cfg.Store.Write(ctx, store.Tx{Delete: []string{ev.key()}})
		if err == nil || ctx.Err() != nil {
			return true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}
