package agent

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/xylem-project/xylem/registryproxy"
	"github.com/xylem-project/xylem/tree/stream"
)

// metrics of an agent; names begin with xylem_, values are in base units.
type metrics struct {
	registry     *prometheus.Registry
	fetchedBytes prometheus.Counter
	fetches      *prometheus.CounterVec // by result
	heldBytes    prometheus.Counter
	heldReads    *prometheus.CounterVec // by result
	conversions  *prometheus.CounterVec // by result
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		fetchedBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "xylem_fetch_bytes_total", Help: "Bytes of blobs, chunk indexes, metadata and manifests read from registries."}),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_fetch_requests_total", Help: "Reads from registries, by result."}, []string{"result"}),
		heldBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "xylem_held_bytes_total", Help: "Bytes of block images read from the agents that converted them."}),
		heldReads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_held_requests_total", Help: "Reads from agents that converted images, by result."}, []string{"result"}),
		conversions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "xylem_conversions_total", Help: "Conversions of images by this node, by how they ended."}, []string{"result"}),
	}
	m.registry.MustRegister(m.fetchedBytes, m.fetches, m.heldBytes, m.heldReads, m.conversions, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// count shows a counter that somebody else keeps.
func (m *metrics) count(name, help string, labels prometheus.Labels, n *atomic.Int64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
		func() float64 { return float64(n.Load()) }))
}

// addProxy shows what the registry proxy gives to clients.
func (m *metrics) addProxy(c *registryproxy.Counters) {
	m.count("xylem_proxy_requests_total", "Requests of clients to the registry proxy.", nil, &c.Requests)
	m.count("xylem_proxy_refused_total", "Of them, those answered with an error.", nil, &c.Refused)
	m.count("xylem_proxy_aborted_total", "Of them, those given up in the middle of a blob.", nil, &c.Aborted)
	m.count("xylem_proxy_blob_bytes_total", "Bytes of blobs given to clients.", nil, &c.BlobBytes)
	m.count("xylem_proxy_direct_bytes_total", "Of them, those that passed the disk by because it had no room.", nil, &c.DirectBytes)
	m.count("xylem_proxy_manifests_total", "Manifests given to clients, by where they were.", prometheus.Labels{"from": "disk"}, &c.ManifestHits)
	m.count("xylem_proxy_manifests_total", "Manifests given to clients, by where they were.", prometheus.Labels{"from": "registry"}, &c.ManifestMisses)
}

// addPeers shows what travels between agents.
func (m *metrics) addPeers(c *stream.Counters) {
	for _, lane := range []stream.Lane{stream.LaneDemand, stream.LaneBackground, stream.LanePush} {
		labels := prometheus.Labels{"lane": lane.String()}
		m.count("xylem_peer_sent_bytes_total", "Bytes of blocks sent to other agents.", labels, &c.BytesUp[lane])
		m.count("xylem_peer_received_bytes_total", "Bytes of blocks received from other agents.", labels, &c.BytesDown[lane])
	}
	m.count("xylem_peer_duplicate_blocks_total", "Blocks received that were here already.", nil, &c.Duplicates)
	m.count("xylem_peer_cutoffs_total", "Agents cut off for wrong bytes or a broken protocol.", nil, &c.CutOffs)
	m.count("xylem_peer_refused_total", "Attachments of other agents refused.", nil, &c.Refused)
	m.count("xylem_peer_hedges_total", "Reads that asked a further source because there was no progress.", nil, &c.Hedges)
	m.count("xylem_peer_stalls_total", "Sources of reads put back because they made no progress.", nil, &c.Stalls)
}

// fetched counts one read of a registry.
func (m *metrics) fetched(n int64, err error) {
	m.fetches.WithLabelValues(resultOf(err)).Inc()
	m.fetchedBytes.Add(float64(n))
}

// held counts one read of an agent that converted an image.
func (m *metrics) held(n int64, err error) {
	m.heldReads.WithLabelValues(resultOf(err)).Inc()
	m.heldBytes.Add(float64(n))
}

func resultOf(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
