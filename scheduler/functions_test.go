package scheduler_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/scheduler/api"
)

// userOf returns a client of a scheduler's API of functions.
func userOf(t *testing.T, cfg api.UserConfig) *api.User {
	t.Helper()
	u, err := api.NewUser(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// Users of the same machine need no key, others one, over TLS.
func TestUsers(t *testing.T) {
	d := start(t, config(t), nil)
	ctx, admin := t.Context(), api.NewAdmin(d.cfg.Socket())
	ca, err := admin.CA(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := userOf(t, api.UserConfig{URL: "http://" + d.cfg.Listen}).List(ctx); err != nil || len(list) != 0 {
		t.Errorf("from this machine: %v, %v", list, err)
	}
	if _, err := userOf(t, api.UserConfig{URL: d.url, CA: []byte(ca)}).List(ctx); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("over TLS without a key: %v", err)
	}
	key, err := admin.CreateKey(ctx, api.KeyRequest{Namespaces: []string{"team"}})
	if err != nil {
		t.Fatal(err)
	}
	user := userOf(t, api.UserConfig{URL: d.url, CA: []byte(ca), Key: key.ID + ":" + key.Secret, Namespace: "team"})
	eventually(t, "a key is known", func() error { _, err := user.List(ctx); return err })
	if _, err := userOf(t, api.UserConfig{URL: d.url, CA: []byte(ca), Key: key.ID + ":" + key.Secret}).List(ctx); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("in another namespace: %v", err)
	}
	if _, err := user.Create(ctx, api.FunctionSpec{Name: "f", Image: "r.example/a:1"}); err == nil || !strings.Contains(err.Error(), "no agent takes work") {
		t.Errorf("a function without nodes: %v", err)
	}
	if keys, err := admin.Keys(ctx); err != nil || len(keys) != 1 || keys[0].ID != key.ID {
		t.Errorf("keys: %+v, %v", keys, err)
	}
	if err := admin.RevokeKey(ctx, key.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a revoked key is refused", func() error {
		if _, err := user.List(ctx); err == nil {
			return errors.New("it is not")
		}
		return nil
	})
}

// Where the configuration says so, users on the machine need a key too.
func TestUsersOfThisMachineWithKeys(t *testing.T) {
	cfg := config(t)
	cfg.AuthLoopback = true
	d := start(t, cfg, nil)
	resp, err := http.Get("http://" + d.cfg.Listen + api.PathFunctions)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a key: %s", resp.Status)
	}
}
