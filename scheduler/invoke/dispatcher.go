package invoke

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/api/lane"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/placement"
)

// Config of a Dispatcher. All of it is needed.
type Config struct {
	// Self names this scheduler: instances that a former run of it started are its own.
	Self string
	// Fleet are the nodes where instances run; the Dispatcher observes it.
	Fleet *fleet.Fleet
	// Functions are those that there are.
	Functions *function.Registry
	// Queue is how many invocations of a version of a function may wait.
	Queue int
	// Mine says whether this scheduler keeps the Min instances of a function, by "namespace/name".
	Mine func(key string) bool
	Log  *slog.Logger
}

// Dispatcher brings invocations to instances. It is safe for concurrent use.
type Dispatcher struct {
	cfg     Config
	fleet   *fleet.Fleet
	prefix  string // of the IDs of this scheduler's instances
	running context.Context
	tasks   sync.WaitGroup
	metrics *metrics

	mu     sync.Mutex
	pools  map[string]*pool // by poolKey
	closed bool
}

// NewDispatcher returns a Dispatcher without instances. It starts nothing after ctx has ended.
func NewDispatcher(ctx context.Context, cfg Config) *Dispatcher {
	d := &Dispatcher{cfg: cfg, fleet: cfg.Fleet, prefix: Prefix(cfg.Self), running: ctx, metrics: newMetrics(), pools: map[string]*pool{}}
	d.fleet.Observe(d)
	return d
}

func (d *Dispatcher) newID() string { return d.prefix + strings.ToLower(rand.Text()[:16]) }

// Invocation is one request to a function.
type Invocation struct {
	ID       string
	Function api.Function
	Colour   string
	Header   http.Header // for the instance
	// Payload is what the function gets; if it is nil, Body is, which can be sent only once.
	Payload []byte
	Body    io.Reader
	// Whole says that the answer may come as a whole, which costs less.
	Whole bool
}

// Answer is what a function answered.
type Answer struct {
	Status  int
	Header  http.Header
	Body    io.ReadCloser // the caller closes it
	Trailer http.Header   // complete when Body has ended
	whole   []byte        // the body, if it came as a whole
}

// FunctionError returns how the function failed: "", "Handled" or "Unhandled".
func (a *Answer) FunctionError() string { return a.Header.Get(api.HeaderFunctionError) }

// Invoke runs an invocation. Answers that say that the function failed are no errors; errors wrap those of this package, or are a
// fleet.Failure.
func (d *Dispatcher) Invoke(ctx context.Context, inv Invocation) (*Answer, error) {
	a, err := d.invoke(ctx, inv)
	d.metrics.done(a, err)
	return a, err
}

func (d *Dispatcher) invoke(ctx context.Context, inv Invocation) (*Answer, error) {
	p, err := d.pool(inv.Function)
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		i, err := p.take(ctx, inv.Colour)
		if err != nil {
			return nil, err
		}
		a, err := p.run(ctx, i, inv)
		if err == nil || attempt == maxAttempts || ctx.Err() != nil || !inv.again(err) {
			return a, err
		}
	}
}

// maxAttempts bounds how often an invocation is sent to an instance.
const maxAttempts = 3

// again says whether an invocation that failed may be sent to another instance.
func (inv Invocation) again(err error) bool {
	switch {
	case inv.Payload == nil:
		return false
	case fleet.IsKind(err, api.FailureNoInstance), fleet.IsKind(err, api.FailureBusy):
		return true
	}
	return inv.Function.Idempotent && errors.Is(err, ErrInterrupted)
}

// run sends an invocation to an instance.
func (p *pool) run(ctx context.Context, i *instance, inv Invocation) (*Answer, error) {
	deadline := time.Now().Add(p.fn.Timeout.Duration)
	ctx, cancel := context.WithDeadlineCause(ctx, deadline.Add(timeoutGrace), errLate)
	header := inv.Header.Clone()
	header.Set(api.HeaderInvocation, inv.ID)
	header.Set(api.HeaderDeadline, strconv.FormatInt(deadline.UnixMilli(), 10))
	send := stream
	if inv.Whole && inv.Payload != nil && len(inv.Payload) <= lane.MaxRequest {
		send = exchange
	}
	a, err := send(ctx, i, header, inv)
	if err != nil {
		cancel()
		err = p.broken(i, err)
		p.give(i)
		return nil, err
	}
	a.Body = &answerBody{ReadCloser: a.Body, over: func() { cancel(); p.give(i) }}
	return a, nil
}

// exchange sends a small payload and gets a whole answer.
func exchange(ctx context.Context, i *instance, header http.Header, inv Invocation) (*Answer, error) {
	a, err := i.node.Exchange(ctx, i.id, header, inv.Payload)
	if err != nil {
		return nil, err
	}
	return &Answer{Status: a.Status, Header: a.Header, Body: io.NopCloser(bytes.NewReader(a.Body)), Trailer: a.Header, whole: a.Body}, nil
}

// stream sends a payload, and gets an answer, piece by piece.
func stream(ctx context.Context, i *instance, header http.Header, inv Invocation) (*Answer, error) {
	req := (&http.Request{Header: header, ContentLength: -1}).WithContext(ctx)
	if inv.Payload != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(inv.Payload)), int64(len(inv.Payload))
	} else {
		req.Body = io.NopCloser(inv.Body)
	}
	resp, err := i.node.Invoke(i.id, req)
	if err != nil {
		return nil, err
	}
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: resp.Body, Trailer: resp.Trailer}, nil
}

// timeoutGrace is how much longer than the node this end waits for an answer.
const timeoutGrace = 5 * time.Second

var errLate = fmt.Errorf("no answer %v after the function's timeout", timeoutGrace)

// broken says what an invocation's failure means for its instance.
func (p *pool) broken(i *instance, err error) error {
	switch {
	case fleet.IsKind(err, api.FailureBusy): // by another scheduler, or before news of an end has come
	case fleet.IsKind(err, api.FailureNoInstance), fleet.IsKind(err, api.FailureExited):
		p.discard(i)
	case fleet.IsKind(err, api.FailureTimeout) && p.fn.Contract == api.ContractLambda:
		p.discard(i)
	case errors.Is(err, fleet.ErrLost):
		p.discard(i)
	}
	if errors.Is(err, fleet.ErrLost) || fleet.IsKind(err, api.FailureExited) {
		err = fmt.Errorf("%w: %w", ErrInterrupted, err)
	}
	return err
}

// answerBody gives the instance's place back when the answer was read.
type answerBody struct {
	io.ReadCloser
	once sync.Once
	over func()
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.once.Do(b.over)
	return err
}

// poolKey tells a version from those of a deleted function of the same name.
func poolKey(fn api.Function) string {
	return fn.ID() + "@" + strconv.FormatInt(fn.Created.UnixNano(), 36)
}

// pool returns the pool of a version, making it if there is none.
func (d *Dispatcher) pool(fn api.Function) (*pool, error) {
	key := poolKey(fn)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, ErrClosed
	}
	if p := d.pools[key]; p != nil {
		return p, nil
	}
	policy, err := placement.New(fn.Placement, placement.Config{})
	if err != nil {
		return nil, err
	}
	p := newPool(d, fn, policy)
	d.pools[key] = p
	return p, nil
}

// Joined implements fleet.Observer: it takes up the instances that an agent runs for this scheduler, as of a former run or connection. Those of functions that are gone
// are stopped in time.
func (d *Dispatcher) Joined(n *fleet.Node, running []api.Instance) {
	for _, r := range running {
		if !strings.HasPrefix(r.ID, d.prefix) || r.State == api.InstanceGone {
			continue
		}
		if p, err := d.pool(r.Function); err == nil {
			p.mu.Lock()
			p.add(n, r.ID)
			p.mu.Unlock()
		}
	}
}

// Lost implements fleet.Observer.
func (d *Dispatcher) Lost(n *fleet.Node) {
	for _, p := range d.all() {
		p.lose(n)
	}
}

func (d *Dispatcher) all() []*pool {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*pool, 0, len(d.pools))
	for _, p := range d.pools {
		list = append(list, p)
	}
	return list
}

// do does something that Run waits for, false if Run has ended.
func (d *Dispatcher) do(task func()) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.tasks.Go(task)
	}
	return !d.closed
}

// stop stops an instance, and gives its room back when it is gone.
func (d *Dispatcher) stop(n *fleet.Node, id string, fn api.Function) {
	ctx, cancel := context.WithTimeout(d.running, stopTimeout)
	defer cancel()
	if err := n.Stop(ctx, id); err != nil && d.running.Err() == nil {
		d.cfg.Log.Warn("instance not stopped", "function", fn.ID(), "instance", id, "peer", n.Peer, "err", err)
	}
	d.fleet.Release(n, fn)
}

// Instances returns the instances that this scheduler invokes, of a namespace.
func (d *Dispatcher) Instances(namespace string) []api.InstanceInfo {
	list := []api.InstanceInfo{}
	for _, p := range d.all() {
		if p.fn.Namespace != namespace {
			continue
		}
		p.mu.Lock()
		for _, i := range p.instances {
			list = append(list, api.InstanceInfo{ID: i.id, Function: p.fn.Name, Version: p.fn.Version, Node: i.node.Peer, InFlight: i.inFlight})
		}
		p.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b api.InstanceInfo) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Version, b.Version), cmp.Compare(a.ID, b.ID))
	})
	return list
}
