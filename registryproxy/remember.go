package registryproxy

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// remembered is what a proxy knows from registries, as it is kept over restarts: so that a machine that starts while a registry is
// down can use what it has. It holds hashes of credentials and the key to them: keep it where credentials are kept.
type remembered struct {
	Version    int                            `json:"version"`
	Key        []byte                         `json:"key"`
	Grants     []noted[grantKey, struct{}]    `json:"grants"`
	Members    []noted[memberKey, member]     `json:"members"`
	Tags       []noted[tagKey, digest.Digest] `json:"tags"`
	Challenges []noted[string, string]        `json:"challenges"`
}

const rememberVersion = 1

// Remember returns what the proxy knows from registries, for Recall.
func (p *Proxy) Remember() ([]byte, error) {
	within := max(p.cfg.GrantTTL, p.cfg.TagTTL) + p.cfg.OfflineFor
	return json.Marshal(remembered{Version: rememberVersion, Key: p.access.key, Grants: p.access.grants.all(within),
		Members: p.access.members.all(within), Tags: p.tags.all(within), Challenges: p.access.challenges.all(within)})
}

// Recall takes up what an earlier proxy knew. Call it before the first request. An error wraps blockfmt.ErrCorrupt, and nothing
// is taken up then.
func (p *Proxy) Recall(text []byte) error {
	var r remembered
	err := json.Unmarshal(text, &r)
	if err == nil && (r.Version != rememberVersion || len(r.Key) != sha256.Size) {
		err = errors.New("of another version")
	}
	if err != nil {
		return fmt.Errorf("what the proxy knew: %w: %w", err, blockfmt.ErrCorrupt)
	}
	p.access.key = r.Key
	p.access.grants.restore(r.Grants)
	p.access.members.restore(r.Members)
	p.tags.restore(r.Tags)
	p.access.challenges.restore(r.Challenges)
	return nil
}
