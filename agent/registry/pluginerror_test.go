package registry_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

// TestPluginIsToBlame: that a plugin fails does not count against the registry, for which nobody else has to wait, and is not taken for its
// refusal. A plugin that has no credentials is one.
func TestPluginIsToBlame(t *testing.T) {
	for what, test := range map[string]struct {
		answer string
		err    error
		want   error
	}{
		"fails":              {"", errors.New("no role"), blockfmt.ErrTransient},
		"talks nonsense":     {"{}", nil, blockfmt.ErrUnsupported},
		"has no credentials": {response("Image", "1h", "b.io", "x"), nil, blockfmt.ErrDenied},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				plugins := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), func(context.Context, string) (string, error) { return test.answer, test.err })
				c, logs := newClient(t, func(cfg *registry.Config) { cfg.Plugins = plugins })
				requests := 0
				c.AnswerWith(func(r *http.Request) int {
					requests++
					if strings.Contains(r.URL.Path, "public") {
						return http.StatusOK
					}
					return http.StatusUnauthorized
				})
				start := time.Now()
				for path, want := range map[string]error{"some/image": test.want, "public/image": nil} {
					repo, err := c.Repository("a.io/" + path)
					if err != nil {
						t.Fatal(err)
					}
					_, _, err = repo.Manifest(t.Context(), describe([]byte("ok")).Digest)
					if !errors.Is(err, want) || errors.Is(err, blockfmt.ErrDenied) != (want == blockfmt.ErrDenied) {
						t.Errorf("%s: %v, want %v", path, err, want)
					}
				}
				if requests != 2 || time.Since(start) > 0 || logs.count("backing off") > 0 {
					t.Errorf("%d requests in %v, want 2 at once", requests, time.Since(start))
				}
			})
		})
	}
}

// TestPluginKeychain: other clients of registries get the same credentials in the same order.
func TestPluginKeychain(t *testing.T) {
	fail := func(context.Context, string) (string, error) { return "", errors.New("no role") }
	give := func(context.Context, string) (string, error) { return response("Image", "1h", "*.io", "plugin's"), nil }
	me := registry.Credentials{Username: "me", Password: "first's"}
	for what, test := range map[string]struct {
		first  registry.Credentials
		plugin func(context.Context, string) (string, error)
		image  string
		want   string // password
		err    error
	}{
		"first":            {me, fail, "a.io/x", "first's", nil},
		"plugin":           {registry.Credentials{}, give, "a.io/x", "plugin's", nil},
		"plugin fails":     {registry.Credentials{}, fail, "a.io/x", "", blockfmt.ErrTransient},
		"nobody is asked":  {registry.Credentials{}, fail, "localhost/x", "", nil},
		"plugin has none":  {registry.Credentials{}, give, "a.example/x", "", nil},
		"the whole domain": {registry.Credentials{}, give, "b.io/some/image", "plugin's", nil},
	} {
		plugins := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), test.plugin)
		repo, err := name.NewRepository(test.image)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := authn.Resolve(t.Context(), plugins.Keychain(&keychain{cred: test.first}), repo)
		if !errors.Is(err, test.err) {
			t.Errorf("%s: %v, want %v", what, err, test.err)
		}
		if err == nil {
			config, err := authn.Authorization(t.Context(), auth)
			if err != nil || config.Password != test.want {
				t.Errorf("%s: password %q, %v; want %q", what, config.Password, err, test.want)
			}
		}
		plugins.Close()
	}
}
