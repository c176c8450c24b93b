package fuse

import (
	"log/slog"
	"time"
)

// Config of a Server, a Conn or a Reader. The zero value is ready to use.
type Config struct {
	// ReadTimeout bounds how long a reader waits for the bytes of one request before it gets EIO, whatever the blob's
	// source does. Default 30 s.
	ReadTimeout time.Duration
	// MaxRequest is the size in bytes up to which the kernel asks for data at once. Larger is faster until header and
	// data no longer fit into one pipe for splice (1 MiB). Default 512 KiB.
	MaxRequest int
	// MaxBackground bounds the requests that the kernel has under way at once. One stalled source may hold them all for
	// ReadTimeout, so it is far above what a disk needs; each takes up to MaxRequest bytes of address space, though
	// resident memory only when data cannot be spliced. Default 256.
	MaxBackground int
	// LogInterval is the least time between two lines about failing reads of the same blob. Default 10 s.
	LogInterval time.Duration
	// Log receives one line for each failed read, at most one per LogInterval and blob. Default: discarded.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.ReadTimeout <= 0 {
		c.ReadTimeout = 30 * time.Second
	}
	if c.MaxRequest <= 0 {
		c.MaxRequest = 512 << 10
	}
	if c.MaxBackground <= 0 {
		c.MaxBackground = 256
	}
	if c.LogInterval <= 0 {
		c.LogInterval = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
