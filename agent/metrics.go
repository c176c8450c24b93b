package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics of an agent; names begin with xylem_, values are in base units.
type metrics struct {
	registry     *prometheus.Registry
	fetchedBytes prometheus.Counter
	fetches      *prometheus.CounterVec // by result
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		fetchedBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "xylem_fetch_bytes_total", Help: "Bytes of blobs, chunk indexes, metadata and manifests read from registries."}),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_fetch_requests_total", Help: "Reads from registries, by result."}, []string{"result"}),
	}
	m.registry.MustRegister(m.fetchedBytes, m.fetches, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// fetched counts one read of a registry.
func (m *metrics) fetched(n int64, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.fetches.WithLabelValues(result).Inc()
	m.fetchedBytes.Add(float64(n))
}
