package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"
)

// Admin asks a scheduler on the same machine what only its operator may.
type Admin struct {
	socket string
	http   *http.Client
}

// NewAdmin returns an Admin that calls a scheduler's admin socket.
func NewAdmin(socket string) *Admin {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Admin{socket, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

func (a *Admin) call(ctx context.Context, method, path string, request, answer any) error {
	if err := call(ctx, a.http, method, "http://scheduler"+path, "", request, answer); err != nil {
		return fmt.Errorf("scheduler at %s: %w", a.socket, err)
	}
	return nil
}

// Ready returns nil if the scheduler serves agents.
func (a *Admin) Ready(ctx context.Context) error {
	return a.call(ctx, http.MethodGet, "/readyz", nil, nil)
}

// CreateToken makes a join token that is valid for ttl (0: until it is revoked) and for a number of joins (0: any).
func (a *Admin) CreateToken(ctx context.Context, ttl time.Duration, uses int) (r TokenResponse, err error) {
	err = a.call(ctx, http.MethodPost, "/v1/tokens", TokenRequest{ttl, uses}, &r)
	return r, err
}

// Tokens lists the join tokens.
func (a *Admin) Tokens(ctx context.Context) (list []TokenInfo, err error) {
	err = a.call(ctx, http.MethodGet, "/v1/tokens", nil, &list)
	return list, err
}

// RevokeToken ends a join token. Agents that joined with it stay.
func (a *Admin) RevokeToken(ctx context.Context, id string) error {
	return a.call(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, nil)
}

// CA returns the certificate of the cluster's CA, PEM.
func (a *Admin) CA(ctx context.Context) (string, error) {
	var r CAResponse
	err := a.call(ctx, http.MethodGet, "/v1/ca", nil, &r)
	return r.PEM, err
}

// CreateKey makes an access key for users.
func (a *Admin) CreateKey(ctx context.Context, request KeyRequest) (r KeyResponse, err error) {
	err = a.call(ctx, http.MethodPost, "/v1/keys", request, &r)
	return r, err
}

// Keys lists the access keys.
func (a *Admin) Keys(ctx context.Context) (list []KeyInfo, err error) {
	err = a.call(ctx, http.MethodGet, "/v1/keys", nil, &list)
	return list, err
}

// RevokeKey ends an access key.
func (a *Admin) RevokeKey(ctx context.Context, id string) error {
	return a.call(ctx, http.MethodDelete, "/v1/keys/"+url.PathEscape(id), nil, nil)
}

// Agents lists the agents that the scheduler knows.
func (a *Admin) Agents(ctx context.Context) (list []AgentInfo, err error) {
	err = a.call(ctx, http.MethodGet, "/v1/agents", nil, &list)
	return list, err
}

// Revoked lists the peer IDs of agents that do not belong to the cluster any more.
func (a *Admin) Revoked(ctx context.Context) (peers []string, err error) {
	err = a.call(ctx, http.MethodGet, "/v1/revoked", nil, &peers)
	return peers, err
}

// Revoke takes an agent out of the cluster at once: schedulers and agents refuse it from now on.
func (a *Admin) Revoke(ctx context.Context, peer string) error {
	return a.call(ctx, http.MethodPut, "/v1/revoked/"+url.PathEscape(peer), nil, nil)
}

// Pardon undoes Revoke.
func (a *Admin) Pardon(ctx context.Context, peer string) error {
	return a.call(ctx, http.MethodDelete, "/v1/revoked/"+url.PathEscape(peer), nil, nil)
}

// Trees lists the trees of the cluster.
func (a *Admin) Trees(ctx context.Context) (list []TreeInfo, err error) {
	err = a.call(ctx, http.MethodGet, PathTrees, nil, &list)
	return list, err
}

// Tree returns a tree that the scheduler owns; the error names the owner of another.
func (a *Admin) Tree(ctx context.Context, image digest.Digest) (t Tree, err error) {
	err = a.call(ctx, http.MethodGet, PathTrees+"/"+image.String(), nil, &t)
	return t, err
}
