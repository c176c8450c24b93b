package treesim

import (
	"testing"
	"time"
)

func TestProbe1(t *testing.T) { // 512 KiB, all
	simulate(t, Config{Seed: 1, Agents: 1000, Blocks: 122_000_000 / (512 << 10), BlockSize: 512 << 10})
}
func TestProbe2(t *testing.T) { // one stripe
	simulate(t, Config{Seed: 1, Agents: 1000, Stripes: 1, Blocks: 122_000_000 / (512 << 10), BlockSize: 512 << 10})
}
func TestProbe3(t *testing.T) { // first block
	simulate(t, Config{Seed: 1, Agents: 1000, Blocks: 40, BlockSize: 180 << 10, Settled: true, Latency: 500 * time.Microsecond})
}
func TestProbe4(t *testing.T) {
	r := simulate(t, Config{Seed: 1, Agents: 1000, Blocks: 428_000_000 / (180 << 10), BlockSize: 180 << 10, Programs: Programs{Count: 2500, Reads: 428_000_000 / (180 << 10) * 16 / 100, Compute: 2 * time.Second}})
	t.Logf("ready %v/%v/%v reads %v", r.Ready.Min, r.Ready.Median, r.Ready.Max, &r.Reads)
}
