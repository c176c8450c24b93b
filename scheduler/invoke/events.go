package invoke

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/store"
)

// Keys in the store: each scheduler has a queue, named by Prefix of its URL, that others take over when it is gone.
const (
	queuesPrefix = "queues/" // + queue; the scheduler's URL
	eventsPrefix = "events/" // + queue + "/" + ID; event in JSON
)

// What waits in memory is bounded, per scheduler.
const (
	maxEvents     = 100_000
	maxEventBytes = 256 << 20
	// maxAtOnce bounds the asynchronous invocations of a function that run at the same time.
	maxAtOnce = 256
)

// EventsConfig of Events. All of it is needed.
type EventsConfig struct {
	Self      string // URL of this scheduler
	Store     store.Store
	Functions *function.Registry
	Invoke    func(context.Context, Invocation) (*Answer, error)
	// Adopts says whether this scheduler takes over the queue of another, by the other's URL: it is dead, and this one is next.
	Adopts func(scheduler string) bool
	Log    *slog.Logger
}

// Events are asynchronous invocations. One that was accepted is in the store until it has succeeded or failed for good; it may run more
// than once if a scheduler dies. It is safe for concurrent use.
type Events struct {
	cfg   EventsConfig
	queue string
	tasks sync.WaitGroup

	mu       sync.Mutex
	running  context.Context // of Run; nil before and after
	backlogs map[string]*backlog
	count    int
	bytes    int
}

// event is an asynchronous invocation, as the store keeps it.
type event struct {
	ID        string      `json:"id"`
	Namespace string      `json:"namespace"`
	Name      string      `json:"name"`
	Qualifier string      `json:"qualifier,omitempty"` // the version that counted when it was accepted
	Header    http.Header `json:"header,omitempty"`
	Colour    string      `json:"colour,omitempty"`
	Payload   []byte      `json:"payload"`
	Accepted  time.Time   `json:"accepted"`
	Attempts  int         `json:"attempts,omitempty"` // that failed

	queue string
	due   time.Time
}

func (e *event) key() string { return eventsPrefix + e.queue + "/" + e.ID }

// NewEvents returns Events that run nothing before Run.
func NewEvents(cfg EventsConfig) *Events {
	return &Events{cfg: cfg, queue: strings.TrimSuffix(Prefix(cfg.Self), "-"), backlogs: map[string]*backlog{}}
}

// Accept returns nil when the invocation is in the store, from where it cannot be lost.
func (e *Events) Accept(ctx context.Context, inv Invocation) error {
	ev := &event{
		ID: inv.ID, Namespace: inv.Function.Namespace, Name: inv.Function.Name, Qualifier: fmt.Sprint(inv.Function.Version),
		Header: inv.Header, Colour: inv.Colour, Payload: inv.Payload, Accepted: time.Now().UTC(), queue: e.queue,
	}
	e.mu.Lock()
	switch {
	case e.running == nil:
		e.mu.Unlock()
		return ErrClosed
	case e.count >= maxEvents || e.bytes+len(ev.Payload) > maxEventBytes:
		e.mu.Unlock()
		return fmt.Errorf("%w: %d asynchronous ones", ErrOverload, e.count)
	}
	e.count++
	e.bytes += len(ev.Payload)
	e.mu.Unlock()
	if err := e.write(ctx, ev); err != nil { // it may be there all the same, and run: the client was not promised that it does not
		e.forget(ev)
		return err
	}
	e.add(ev)
	return nil
}

// write puts an event into the store.
func (e *Events) write(ctx context.Context, ev *event) error {
	text, err := json.Marshal(ev)
	if err == nil {
		_, err = e.cfg.Store.Write(ctx, store.Tx{Put: []store.Item{{Key: ev.key(), Value: text}}})
	}
	return err
}

func (e *Events) forget(ev *event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.count--
	e.bytes -= len(ev.Payload)
}

// adoptEvery is how often it is looked whether a scheduler left a queue.
const adoptEvery = 5 * time.Second

// Run runs what this scheduler accepted, now and before, until ctx ends, and returns when nothing runs any more.
func (e *Events) Run(ctx context.Context) {
	e.mu.Lock()
	e.running = ctx
	e.mu.Unlock()
	have := map[string]bool{} // queues that were read
	for ticker := time.NewTicker(adoptEvery); ; {
		if err := e.takeUp(ctx, have); err != nil && ctx.Err() == nil {
			e.cfg.Log.Warn("asynchronous invocations that wait in the store are not known yet", "err", err)
		}
		select {
		case <-ticker.C:
			continue
		case <-ctx.Done():
		}
		ticker.Stop()
		e.mu.Lock()
		e.running = nil
		e.mu.Unlock()
		e.tasks.Wait()
		return
	}
}

// takeUp reads the own queue once, and those of schedulers that are gone.
func (e *Events) takeUp(ctx context.Context, have map[string]bool) error {
	if !have[e.queue] {
		if _, err := e.cfg.Store.Write(ctx, store.Tx{Put: []store.Item{{Key: queuesPrefix + e.queue, Value: []byte(e.cfg.Self)}}}); err != nil {
			return err
		}
		if err := e.read(ctx, e.queue); err != nil {
			return err
		}
		have[e.queue] = true
	}
	queues, err := e.cfg.Store.Read(ctx, queuesPrefix)
	if err != nil {
		return err
	}
	for _, item := range queues {
		queue := strings.TrimPrefix(item.Key, queuesPrefix)
		if queue == e.queue {
			continue
		}
		adopts := e.cfg.Adopts(string(item.Value))
		if adopts && !have[queue] {
			e.cfg.Log.Info("asynchronous invocations of a scheduler that is gone are taken over", "scheduler", string(item.Value))
			if err := e.read(ctx, queue); err != nil {
				return err
			}
		}
		have[queue] = adopts
	}
	return nil
}

// read takes up what is in a queue and not known. What this scheduler accepts while it reads is known already.
func (e *Events) read(ctx context.Context, queue string) error {
	items, err := e.cfg.Store.Read(ctx, eventsPrefix+queue+"/")
	if err != nil {
		return err
	}
	for _, item := range items {
		ev := &event{}
		if err := json.Unmarshal(item.Value, ev); err != nil {
			e.cfg.Log.Error("an asynchronous invocation's record is damaged", "key", item.Key, "err", err)
			continue
		}
		ev.queue = queue
		e.mu.Lock()
		e.count++
		e.bytes += len(ev.Payload)
		e.mu.Unlock()
		e.add(ev)
	}
	return nil
}

// add puts an event into its function's backlog, unless it is there.
func (e *Events) add(ev *event) {
	key := ev.Namespace + "/" + ev.Name
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.backlogs[key]
	if l == nil {
		l = &backlog{events: e, known: map[string]bool{}}
		e.backlogs[key] = l
	}
	if l.known[ev.ID] {
		e.count--
		e.bytes -= len(ev.Payload)
		return
	}
	l.known[ev.ID] = true
	l.push(ev)
	l.pump()
}
