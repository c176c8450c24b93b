package scheduler

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics of a scheduler; names begin with xylem_scheduler_, values are in base units.
type metrics struct {
	registry    *prometheus.Registry
	sessions    prometheus.Gauge
	agents      prometheus.Gauge
	trees       prometheus.Gauge
	heartbeats  prometheus.Counter
	cutOff      prometheus.Counter
	claims      prometheus.Counter
	corrections prometheus.Counter
	writes      prometheus.Histogram
	failures    *prometheus.CounterVec // by why
	conversions *prometheus.CounterVec // by how they ended
	requests    *prometheus.CounterVec // by call and status
}

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "xylem_scheduler_" + name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "xylem_scheduler_" + name, Help: help})
	}
	m := &metrics{
		registry:    prometheus.NewRegistry(),
		sessions:    gauge("sessions", "Agents with a session."),
		agents:      gauge("agents", "Agents that are known."),
		trees:       gauge("trees", "Trees that this scheduler owns."),
		heartbeats:  counter("heartbeats_total", "Heartbeats of agents."),
		cutOff:      counter("cut_off_total", "Peers that sent wrong bytes or broke the protocol, as agents reported."),
		claims:      counter("claims_total", "Trees that this scheduler began to own."),
		corrections: counter("corrections_total", "Roles of members that were corrected."),
		writes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "xylem_scheduler_write_seconds", Help: "How long the state store took to write events of a tree.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_scheduler_failures_total", Help: "Agents that were taken out of their trees, by reason."}, []string{"why"}),
		conversions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_scheduler_conversions_total", Help: "Conversions of images by agents, by how they ended."}, []string{"result"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_scheduler_requests_total", Help: "Calls of agents, by call and HTTP status."}, []string{"call", "status"}),
	}
	m.registry.MustRegister(m.sessions, m.agents, m.trees, m.heartbeats, m.cutOff, m.claims, m.corrections, m.writes, m.failures, m.conversions, m.requests,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}
