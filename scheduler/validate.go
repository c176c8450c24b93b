package scheduler

import (
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Bounds of what agents say.
const (
	maxAddrs  = 32
	maxName   = 256 // bytes of a zone
	maxRef    = 1024
	maxBlocks = 1 << 30
	maxWhy    = 512 // bytes of why a conversion failed
)

func validImage(image digest.Digest) error {
	if err := image.Validate(); err != nil {
		return fmt.Errorf("%w: image %.80q: %w", errInvalid, image, err)
	}
	return nil
}

func validEnter(r api.EnterRequest, stripes int) error {
	if err := validImage(r.Image); err != nil {
		return err
	}
	if len(r.Ref) > maxRef || len(r.Total) != 0 && len(r.Total) != stripes || !validCounts(r.Total) {
		return fmt.Errorf("%w: image %s with %d totals, want none or %d, and a name of at most %d bytes", errInvalid, r.Image, len(r.Total), stripes, maxRef)
	}
	return nil
}

func validCounts(counts []int) bool {
	for _, n := range counts {
		if n < 0 || n > maxBlocks {
			return false
		}
	}
	return true
}

// validHeartbeat checks what the forest does not.
func validHeartbeat(h api.Heartbeat, peer string, stripes int) error {
	switch {
	case h.Agent.ID != peer:
		return fmt.Errorf("%w: heartbeat of %.80q from %s", errInvalid, h.Agent.ID, peer)
	case len(h.Agent.Addrs) > maxAddrs || len(h.Zone) > maxName || len(h.Images) > maxImages || len(h.Waiting) > api.MaxNamed || h.Children < 0 || h.Children > maxBlocks:
		return fmt.Errorf("%w: heartbeat of %s is out of bounds", errInvalid, peer)
	}
	for _, m := range h.Images {
		if err := validMembership(m, stripes); err != nil {
			return err
		}
	}
	return nil
}

func validMembership(m api.Membership, stripes int) error {
	if err := validImage(m.Image); err != nil {
		return err
	}
	short := len(m.Held) <= stripes && len(m.Total) <= stripes && len(m.Epochs) <= stripes && len(m.Rates) <= stripes
	if !short || len(m.Failed) > api.MaxNamed || len(m.CutOff) > api.MaxNamed || !validCounts(m.Held) {
		return fmt.Errorf("%w: heartbeat on %s is out of bounds", errInvalid, m.Image)
	}
	return nil
}

func validConvert(r api.ConvertRequest) error {
	if err := validImage(r.Source); err != nil || r.Missing == "" {
		return err
	}
	return validImage(r.Missing)
}

func validConverted(r api.ConvertedRequest, peer string) error {
	if err := validImage(r.Source); err != nil {
		return err
	}
	if r.Image != "" && r.Failed != "" || len(r.Failed) > maxWhy || len(r.Pushed) > maxRef {
		return fmt.Errorf("%w: conversion of %s has an image or failed, for a reason of at most %d bytes, and a repository of at most %d", errInvalid, r.Source, maxWhy, maxRef)
	}
	if r.Image == "" {
		return nil
	}
	if err := validImage(r.Image); err != nil {
		return err
	}
	return validHolder(r.Agent, peer)
}

func validHolder(p api.Peer, peer string) error {
	if p.ID != peer || len(p.Addrs) > maxAddrs {
		return fmt.Errorf("%w: holder %.80q with %d addresses, want %s and at most %d", errInvalid, p.ID, len(p.Addrs), peer, maxAddrs)
	}
	return nil
}
