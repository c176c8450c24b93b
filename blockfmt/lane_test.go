package blockfmt_test

import (
	"context"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
)

func TestLanes(t *testing.T) {
	plain := t.Context()
	if !blockfmt.IsDemand(plain) {
		t.Error("a plain context is not in the demand lane")
	}
	blockfmt.Promote(plain) // of no effect
	back := blockfmt.Background(plain)
	below, cancel := context.WithCancel(back)
	defer cancel()
	other := blockfmt.Background(back)
	if blockfmt.IsDemand(back) || blockfmt.IsDemand(below) || blockfmt.IsDemand(other) {
		t.Error("a context in the background is in the demand lane")
	}
	blockfmt.Promote(below)
	blockfmt.Promote(below)
	if !blockfmt.IsDemand(back) || !blockfmt.IsDemand(below) {
		t.Error("promoting a context did not promote the read that it belongs to")
	}
	if blockfmt.IsDemand(other) {
		t.Error("promoting a read promoted another one")
	}
}
