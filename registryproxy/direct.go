package registryproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/xylem-project/xylem/blockfmt"
)

// sendDirect gives a client the registry's bytes without the disk: the way of last resort, when this machine has no room for
// them. Of a whole blob the last block is held back until the digest was checked, as always.
func (p *Proxy) sendDirect(ctx context.Context, s *sender, b Blob) error {
	req := Request{Method: http.MethodGet, Host: b.Host, Repo: b.Repo, Kind: "blobs", Ref: b.Digest.String(), Authorization: b.Authorization}
	if s.part.n < b.Size {
		req.Range = fmt.Sprintf("bytes=%d-%d", s.part.off, s.part.off+s.part.n-1)
	}
	resp, err := p.cfg.Upstream.Do(ctx, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := checkBody(resp, req, s.part.off, s.part.off+s.part.n, b.Size); err != nil {
		return err
	}
	if s.part.n < b.Size {
		return s.copy(io.LimitReader(resp.Body, s.part.n), s.part.n)
	}
	return s.verified(resp.Body, b)
}

// verified sends a whole blob block by block, each when the next one is here and the last when all are right.
func (s *sender) verified(body io.Reader, b Blob) error {
	hash := b.Digest.Algorithm().Hash()
	held, next := make([]byte, 0, blockfmt.BlockSize), make([]byte, blockfmt.BlockSize)
	for i := range b.Blocks() {
		_, n := b.Block(i)
		if _, err := io.ReadFull(body, next[:n]); err != nil {
			return fmt.Errorf("blob %s: %w: %w", b.Digest, err, blockfmt.ErrTransient)
		}
		hash.Write(next[:n])
		if len(held) > 0 {
			if err := s.write(held); err != nil {
				return err
			}
		}
		held, next = next[:n], held[:cap(held)]
	}
	if fmt.Sprintf("%x", hash.Sum(nil)) != b.Digest.Encoded() {
		return fmt.Errorf("blob %s: got other bytes: %w", b.Digest, blockfmt.ErrCorrupt)
	}
	return s.write(held)
}
