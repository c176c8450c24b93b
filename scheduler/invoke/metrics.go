package invoke

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xylem-project/xylem/scheduler/fleet"
)

// metrics of a Dispatcher and its Events. Functions are no labels: there may be very many.
type metrics struct {
	invocations *prometheus.CounterVec // by result
	starts      *prometheus.CounterVec // by result
	waits       prometheus.Histogram
	startTimes  prometheus.Histogram
	spilled     prometheus.Counter
}

func newMetrics() *metrics {
	name := func(s string) string { return "xylem_scheduler_" + s }
	return &metrics{
		invocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: name("invocations_total"), Help: "Invocations, by result: ok, function_error, overload, interrupted, failed."}, []string{"result"}),
		starts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: name("instance_starts_total"), Help: "Starts of instances, by result: ok, no_room, failed."}, []string{"result"}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name("invocation_wait_seconds"), Help: "How long invocations waited for an instance.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10)}),
		startTimes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name("instance_start_seconds"), Help: "How long instances took to be ready.", Buckets: prometheus.ExponentialBuckets(0.025, 2, 12)}),
		spilled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: name("invocations_spilled_total"), Help: "Invocations that went to another instance than the first for their color."}),
	}
}

// Collectors returns what Prometheus reads.
func (d *Dispatcher) Collectors() []prometheus.Collector {
	m := d.metrics
	instances := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "xylem_scheduler_instances", Help: "Instances that this scheduler invokes."}, func() float64 {
		return d.count(func(p *pool) int { return len(p.instances) })
	})
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "xylem_scheduler_invocations_waiting", Help: "Invocations that wait for an instance."}, func() float64 {
		return d.count(func(p *pool) int { return len(p.waiting) })
	})
	nodes := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "xylem_scheduler_nodes", Help: "Nodes that take work from this scheduler."}, func() float64 {
		return float64(len(d.fleet.Nodes()))
	})
	return []prometheus.Collector{m.invocations, m.starts, m.waits, m.startTimes, m.spilled, instances, waiting, nodes}
}

// Collectors returns what Prometheus reads.
func (e *Events) Collectors() []prometheus.Collector {
	return []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "xylem_scheduler_events", Help: "Asynchronous invocations that wait or run."}, func() float64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		return float64(e.count)
	})}
}

func (d *Dispatcher) count(of func(*pool) int) (sum float64) {
	for _, p := range d.all() {
		p.mu.Lock()
		sum += float64(of(p))
		p.mu.Unlock()
	}
	return sum
}

// done counts an invocation.
func (m *metrics) done(a *Answer, err error) {
	result := "ok"
	switch {
	case errors.Is(err, ErrOverload):
		result = "overload"
	case errors.Is(err, ErrInterrupted):
		result = "interrupted"
	case err != nil:
		result = "failed"
	case a.FunctionError() != "":
		result = "function_error"
	}
	m.invocations.WithLabelValues(result).Inc()
}

// started counts a start.
func (m *metrics) started(took time.Duration, err error) {
	switch {
	case err == nil:
		m.starts.WithLabelValues("ok").Inc()
		m.startTimes.Observe(took.Seconds())
	case errors.Is(err, fleet.ErrNoRoom), errors.Is(err, fleet.ErrNoNodes):
		m.starts.WithLabelValues("no_room").Inc()
	default:
		m.starts.WithLabelValues("failed").Inc()
	}
}
