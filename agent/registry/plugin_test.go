package registry_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

// TestMatchImages has the examples of the Kubernetes documentation, and the rules it gives.
func TestMatchImages(t *testing.T) {
	for _, test := range []struct {
		pattern, image string
		want           bool
	}{
		{"123456789.dkr.ecr.us-east-1.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/app", true},
		{"*.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.us-east-1.amazonaws.com/app", true},
		{"*.dkr.ecr.*.amazonaws.com", "123456789.dkr.ecr.cn-north-1.amazonaws.com.cn/app", false},
		{"*.azurecr.io", "mine.azurecr.io/app", true},
		{"*.azurecr.io", "azurecr.io/app", false},
		{"gcr.io", "gcr.io/project/app", true},
		{"gcr.io", "eu.gcr.io/project/app", false},
		{"*.*.registry.io", "a.b.registry.io/app", true},
		{"*.*.registry.io", "b.registry.io/app", false},
		{"registry.io:8080/path", "registry.io:8080/path/app", true},
		{"registry.io:8080/path", "registry.io:8080/path", true},
		{"registry.io:8080/path", "registry.io:8080/other/path", false},
		{"registry.io:8080/path", "registry.io/path/app", false},
		{"registry.io:8080/path", "registry.io:8081/path/app", false},
		{"registry.io/path", "registry.io:8080/path/app", false},
		{"registry.io/foo", "registry.io/foobar", true}, // a prefix, as the kubelet takes it
		// a wildcard is one part of a domain, or some of it
		{"*.k8s.io", "app.k8s.io/x", true},
		{"k8s.*.io", "k8s.app.io/x", true},
		{"k8s.*", "k8s.io/x", true},
		{"app*.k8s.io", "app7.k8s.io/x", true},
		{"app*.k8s.io", "ap.k8s.io/x", false},
		{"*.io", "app.k8s.io/x", false},
		{"*", "localhost/x", true},
		{"registry.io/*", "registry.io/x", false},
		{"docker.io", "docker.io/library/alpine", true},
		{"docker.io/me", "docker.io/library/alpine", false},
		{"[::1]:5000", "[::1]:5000/x", true},
	} {
		if got, err := registry.ImageMatches(test.pattern, test.image); got != test.want || err != nil {
			t.Errorf("%s for %s: %v, %v", test.pattern, test.image, got, err)
		}
	}
	for _, bad := range []string{"", "/path", ":5000", "https://registry.io", "reg[istry.io", "registry.io:*", "a b"} {
		if _, err := registry.ImageMatches(bad, "registry.io/x"); err == nil {
			t.Errorf("%q is taken for a pattern", bad)
		}
	}
}

// response is an answer with a password.
func response(scope, life, key, password string) string {
	if life != "" {
		life = fmt.Sprintf(`"cacheDuration":%q,`, life)
	}
	return fmt.Sprintf(`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":%q,%s"auth":{%q:{"username":"me","password":%q}}}`,
		scope, life, key, password)
}

// counted are plugins whose one plugin answers what text says, after a second, with the number of the run as the password.
func counted(t *testing.T, scope, life, key string) (*registry.Plugins, *atomic.Int32) {
	runs := &atomic.Int32{}
	p := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), func(context.Context, string) (string, error) {
		n := runs.Add(1)
		time.Sleep(time.Second)
		return response(scope, life, key, fmt.Sprint(n)), nil
	})
	t.Cleanup(p.Close)
	return p, runs
}

func ask(t *testing.T, p *registry.Plugins, host, path string) string {
	t.Helper()
	cred, err := p.Credentials(t.Context(), host, path)
	if err != nil {
		t.Error(err)
	}
	return cred.Password
}

func TestPluginAnswersAreKept(t *testing.T) {
	for _, test := range []struct {
		scope, life string
		after       time.Duration
		want        [4]string // for an image, another one, one of another registry, and the first one after that time
	}{
		{"Image", "10m", 9 * time.Minute, [4]string{"1", "2", "3", "1"}},
		{"Image", "10m", 11 * time.Minute, [4]string{"1", "2", "3", "4"}},
		{"Registry", "10m", 9 * time.Minute, [4]string{"1", "1", "2", "1"}},
		{"Registry", "10m", 11 * time.Minute, [4]string{"1", "1", "2", "3"}},
		{"Global", "10m", 9 * time.Minute, [4]string{"1", "1", "1", "1"}},
		{"Global", "10m", 11 * time.Minute, [4]string{"1", "1", "1", "2"}},
		{"Global", "", 59 * time.Minute, [4]string{"1", "1", "1", "1"}}, // the configuration's
		{"Global", "", 61 * time.Minute, [4]string{"1", "1", "1", "2"}},
		{"Global", "0s", 0, [4]string{"1", "2", "3", "4"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, _ := counted(t, test.scope, test.life, "*.io")
			got := [4]string{ask(t, p, "a.io", "x"), ask(t, p, "a.io", "y"), ask(t, p, "b.io", "x")}
			time.Sleep(test.after)
			got[3] = ask(t, p, "a.io", "x")
			if got != test.want {
				t.Errorf("%s for %s, %v later: %v, want %v", test.scope, test.life, test.after, got, test.want)
			}
		})
	}
}

// TestPluginRunsOnce: 64 who ask at the same time are one process, also those of other images once it is known what an answer is
// good for; and the process goes on when the one for whom it was started has left.
func TestPluginRunsOnce(t *testing.T) {
	for _, life := range []string{"1m", "0s"} {
		synctest.Test(t, func(t *testing.T) {
			p, runs := counted(t, "Registry", life, "*.io")
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			if _, err := p.Credentials(ctx, "a.io", "x"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("who cannot wait: %v", err)
			}
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() { ask(t, p, "a.io", "x") })
			}
			wg.Wait()
			time.Sleep(2 * time.Minute)
			for i := range 64 {
				wg.Go(func() { ask(t, p, "a.io", fmt.Sprint(i)) })
			}
			wg.Wait()
			if n := runs.Load(); n != 2 {
				t.Errorf("life %s: %d runs, want 2", life, n)
			}
		})
	}
}

// TestPluginFails: a plugin that fails is left alone for a moment, and the next one is asked.
func TestPluginFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := &logBook{}
		log := slog.New(slog.NewTextHandler(logs, nil))
		runs := 0
		bad := func(context.Context, string) (string, error) { runs++; return "", errors.New("no role") }
		p := registry.FakePlugins(time.Hour, log, bad)
		defer p.Close()
		for range 3 {
			if _, err := p.Credentials(t.Context(), "a.io", "x"); err == nil || !strings.Contains(err.Error(), "no role") {
				t.Errorf("error %v", err)
			}
		}
		time.Sleep(5 * time.Second)
		_, _ = p.Credentials(t.Context(), "a.io", "x")
		if runs != 2 || logs.count("no role") != 2 {
			t.Errorf("%d runs and %d lines in the log, want 2", runs, logs.count("no role"))
		}
		both := registry.FakePlugins(time.Hour, log, bad, func(context.Context, string) (string, error) {
			return response("Global", "", "*.io", "second"), nil
		})
		defer both.Close()
		if got := ask(t, both, "a.io", "x"); got != "second" {
			t.Errorf("password %q", got)
		}
		neither := registry.FakePlugins(time.Hour, log, bad, bad)
		defer neither.Close()
		if _, err := neither.Credentials(t.Context(), "a.io", "x"); err == nil || strings.Count(err.Error(), "no role") != 2 || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want both in one line", err)
		}
	})
}

// TestPluginRefused: what a registry refuses is asked for again, but not at once.
func TestPluginRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := counted(t, "Global", "1h", "*.io")
		first := ask(t, p, "a.io", "x")
		young := p.Refuse(t.Context(), "a.io", "x")
		time.Sleep(10 * time.Second)
		old := p.Refuse(t.Context(), "a.io", "x")
		if second := ask(t, p, "a.io", "x"); first != "1" || second != "2" || young || !old {
			t.Errorf("passwords %s and %s, forgotten when young: %v, when old: %v", first, second, young, old)
		}
	})
}

func TestPluginLongestKey(t *testing.T) {
	auth := `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Global","auth":{` +
		`"*.example.io":{"username":"me","password":"any"},"reg.example.io/team":{"username":"me","password":"team"},"https://reg.example.io/v2/team/app":{"username":"me","password":"app"},` +
		`"reg.example.io":{"username":"me","password":"host"},"bad[":{"username":"me","password":"bad"},"none.io":{},"index.docker.io":{"username":"me","password":"hub"}}}`
	p := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), func(context.Context, string) (string, error) { return auth, nil })
	defer p.Close()
	for _, test := range [][3]string{
		{"reg.example.io", "team/app/x", "app"}, {"reg.example.io", "team/x", "team"}, {"reg.example.io", "x", "host"}, {"other.example.io", "team/x", "any"},
		{"elsewhere.io", "x", ""}, {"none.io", "x", ""}, {"index.docker.io", "library/alpine", "hub"},
	} {
		if got := ask(t, p, test[0], test[1]); got != test[2] {
			t.Errorf("%s/%s: %q, want %q", test[0], test[1], got, test[2])
		}
	}
}

// TestPluginAnswerIsChecked: what is not as the protocol says is an error that shows nothing of it.
func TestPluginAnswerIsChecked(t *testing.T) {
	good := response("Global", "1h", "a.io", "hunter2")
	for name, text := range map[string]string{
		"version":  strings.Replace(good, "/v1", "/v1beta1", 1),
		"kind":     strings.Replace(good, "ProviderResponse", "ProviderRequest", 1),
		"key type": strings.Replace(good, "Global", "hunter2", 1),
		"duration": strings.Replace(good, "1h", "hunter2", 1),
		"negative": strings.Replace(good, "1h", "-1h", 1),
		"type":     strings.Replace(good, `{"username"`, `"hunter2",{"username"`, 1),
		"empty":    "",
		"tail":     good + "hunter2",
	} {
		p := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), func(context.Context, string) (string, error) { return text, nil })
		if _, err := p.Credentials(t.Context(), "a.io", "x"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v", name, err)
		}
		p.Close()
	}
}

func FuzzPluginAnswer(f *testing.F) {
	f.Add(response("Global", "1h", "*.io", "x"), "a.io/x")
	f.Fuzz(func(t *testing.T, text, image string) {
		host, path, _ := strings.Cut(image, "/")
		p := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), func(context.Context, string) (string, error) { return text, nil })
		defer p.Close()
		_, _ = p.Credentials(t.Context(), host, path)
	})
}

// TestPluginProgram runs a real program that misbehaves.
func TestPluginProgram(t *testing.T) {
	for _, test := range []struct {
		what    string
		timeout time.Duration
		want    string
		kind    error
	}{
		{"fail", time.Minute, `plugin for registry.example/some/image: exit status 1: "no role for this machine"`, blockfmt.ErrTransient},
		{"crash", time.Minute, `plugin for registry.example/some/image: signal: segmentation fault`, blockfmt.ErrTransient},
		{"garbage", time.Minute, "no CredentialProviderResponse", blockfmt.ErrUnsupported},
		{"big", time.Minute, "larger than 1048576 bytes", blockfmt.ErrTransient},
		{"hang", 2 * time.Second, `no answer within 2s: "waiting for metadata"`, blockfmt.ErrTransient},
		{"silent", time.Minute, "no CredentialProviderResponse", blockfmt.ErrUnsupported},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			start := time.Now()
			err := registry.RunPlugin(t.Context(), dir, test.what, test.timeout)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %v, want %s", err, test.want)
			}
			if failed := (*registry.PluginError)(nil); !errors.As(err, &failed) || failed.Plugin != "plugin" || !errors.Is(err, test.kind) || errors.Is(err, blockfmt.ErrDenied) {
				t.Errorf("%v is of plugin %v, want it to be %v", err, failed, test.kind)
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("took %v", d)
			}
			if test.what == "hang" {
				mustEnd(t, filepath.Join(dir, "child"))
			}
		})
	}
}

// mustEnd waits until the process whose number is in a file has ended.
func mustEnd(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return
		}
	}
	t.Errorf("the plugin's child %d lives", pid)
}

// program is testdata/plugin that gives what setPassword said last.
type program struct {
	dir, config string
}

func newProgram(t *testing.T, patterns, life string) program {
	t.Helper()
	dir := t.TempDir()
	p := program{dir, filepath.Join(dir, "config.yaml")}
	write(t, p.config, `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: plugin
    matchImages: [`+patterns+`]
    defaultCacheDuration: "`+life+`"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [answer]
    env:
      - name: PLUGIN_DIR
        value: `+dir+`
`)
	return p
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (p program) setPassword(t *testing.T, key, life, password string) {
	write(t, filepath.Join(p.dir, "answer"), response("Registry", life, key, password))
}

func (p program) open(t *testing.T) *registry.Plugins {
	t.Helper()
	plugins, err := registry.OpenPlugins(p.config, "testdata", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return plugins
}

func (p program) runs() int {
	text, _ := os.ReadFile(filepath.Join(p.dir, "runs")) // none yet
	return strings.Count(string(text), "\n")
}

// TestPluginCredentials: a registry is read with what a plugin gives, by basic authentication and by token.
func TestPluginCredentials(t *testing.T) {
	for _, basic := range []bool{true, false} {
		t.Run(fmt.Sprintf("basic=%v", basic), func(t *testing.T) {
			t.Parallel()
			g := startGuarded(t, "me:hunter2")
			g.basic = basic
			p := newProgram(t, `"*.*.0.1:`+port(g.host)+`"`, "1h")
			p.setPassword(t, g.host, "", "hunter2")
			c, logs := newClient(t, func(cfg *registry.Config) { cfg.Plugins, cfg.StallTimeout = p.open(t), 10*time.Second })
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					if err := g.read(t, c); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if n := p.runs(); n != 1 {
				t.Errorf("%d runs, want 1", n)
			}
			request, err := os.ReadFile(filepath.Join(p.dir, "requests"))
			want := `{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"` + g.host + `/some/image","kind":"CredentialProviderRequest"}`
			if err != nil || string(request) != want {
				t.Errorf("request %s, %v; want %s", request, err, want)
			}
			if logs.count("hunter2") > 0 {
				t.Error("the password is in the log")
			}
		})
	}
}

// TestPluginCredentialsExpire: the plugin is asked again as soon as its answer has expired, before the registry says so.
func TestPluginCredentialsExpire(t *testing.T) {
	for _, basic := range []bool{true, false} {
		t.Run(fmt.Sprintf("basic=%v", basic), func(t *testing.T) {
			t.Parallel()
			g := startGuarded(t, "me:one")
			g.basic = basic
			p := newProgram(t, g.host, "1ns")
			p.setPassword(t, g.host, "", "one")
			c, _ := newClient(t, func(cfg *registry.Config) { cfg.Plugins, cfg.StallTimeout = p.open(t), 10*time.Second })
			if err := g.read(t, c); err != nil {
				t.Fatal(err)
			}
			g.user = "me:two"
			g.good.Store(100)
			p.setPassword(t, g.host, "", "two")
			g.requests.Store(0)
			if err := g.read(t, c); err != nil {
				t.Errorf("after the password has changed: %v", err)
			}
			if n := g.requests.Load(); basic && n != 1 {
				t.Errorf("%d requests, want 1: no 401", n)
			}
			// A plugin that fails leaves what it gave before, which may do.
			write(t, filepath.Join(p.dir, "answer"), "{}")
			if err := g.read(t, c); err != nil {
				t.Errorf("while the plugin fails: %v", err)
			}
		})
	}
}

func port(host string) string { return host[strings.LastIndexByte(host, ':')+1:] }

// TestPluginConfiguration: what the kubelet refuses is refused, and what a later kubelet knows is not.
func TestPluginConfiguration(t *testing.T) {
	good := newProgram(t, `"*.example.io"`, "1h").config
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ old, replacement, want string }{
		"good":            {"", "", ""},
		"later key":       {"args:", "somethingNew: true\n    args:", ""},
		"beta":            {"config.k8s.io/v1", "config.k8s.io/v1beta1", ""},
		"service account": {"args:", "tokenAttributes: {requireServiceAccount: true}\n    args:", ""},
		"no YAML":         {"providers:", "providers: [", "config.yaml: error converting YAML"},
		"version":         {"config.k8s.io/v1", "config.k8s.io/v2", "v2"},
		"kind":            {"CredentialProviderConfig", "KubeletConfiguration", "KubeletConfiguration"},
		"none":            {"providers:", "providers: []\nothers:", "has no providers"},
		"protocol":        {"credentialprovider.kubelet.k8s.io/v1", "v1", "apiVersion"},
		"path":            {"name: plugin", "name: ../plugin", "name must be"},
		"program":         {"name: plugin", "name: nothing", "testdata/nothing"},
		"not executable":  {"name: plugin", "name: README.md", "testdata/README.md"},
		"no images":       {`"*.example.io"`, "", "matchImages"},
		"pattern":         {`*.example.io`, "https://example.io", "matchImages"},
		"no duration":     {"defaultCacheDuration:", "other:", "defaultCacheDuration"},
		"duration":        {`"1h"`, `"soon"`, "soon"},
		"negative":        {`"1h"`, `"-1h"`, "-1h"},
		"variable":        {"PLUGIN_DIR", `"A=B"`, "A=B"},
		"twice":           {"  - name: plugin", "  - {name: plugin, matchImages: [a], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1}\n  - name: plugin", "twice"},
		"large":           {"kind:", "# " + strings.Repeat("x", 1<<20) + "\nkind:", "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			write(t, path, strings.Replace(string(text), test.old, test.replacement, 1))
			for _, p := range []string{path, filepath.Dir(path)} {
				plugins, err := registry.OpenPlugins(p, "testdata", slog.New(slog.DiscardHandler))
				switch {
				case err == nil:
					plugins.Close()
					if test.want != "" {
						t.Errorf("accepted, want %q", test.want)
					}
				case test.want == "" || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n"):
					t.Errorf("error %v, want %q", err, test.want)
				}
			}
		})
	}
	for _, path := range []string{"/nonexistent", t.TempDir()} {
		if _, err := registry.OpenPlugins(path, "testdata", slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s is accepted", path)
		}
	}
}

// TestPluginIsLast: credentials that were set, and the Keychain's, come first.
func TestPluginIsLast(t *testing.T) {
	g := startGuarded(t, "me:one")
	g.basic = true
	p := newProgram(t, g.host, "1h")
	p.setPassword(t, g.host, "", "other")
	keys := &keychain{cred: registry.Credentials{Username: "me", Password: "one"}}
	c, _ := newClient(t, func(cfg *registry.Config) { cfg.Plugins, cfg.Keychain = p.open(t), keys })
	if err := g.read(t, c); err != nil {
		t.Errorf("with the keychain's: %v", err)
	}
	g.user = "me:two"
	c.SetCredentials(g.host, registry.Credentials{Username: "me", Password: "two"})
	if err := g.read(t, c); err != nil {
		t.Errorf("with those that were set: %v", err)
	}
	if n := p.runs(); n != 0 {
		t.Errorf("%d runs", n)
	}
	c.SetCredentials(g.host, registry.Credentials{})
	keys.set(registry.Credentials{})
	if err := g.read(t, c); !errors.Is(err, blockfmt.ErrDenied) || strings.Contains(err.Error(), "other") {
		t.Errorf("with the plugin's, which are wrong: %v", err)
	}
	if n := p.runs(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
}

// TestPluginOutdated: a password that a registry refuses before its time is up is asked for again before anybody sees the 401,
// also by who has it from another repository's pull; and a plugin that insists on wrong ones is not run for each request.
func TestPluginOutdated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var password atomic.Value
		password.Store("one")
		runs := 0
		plugins := registry.FakePlugins(time.Hour, slog.New(slog.DiscardHandler), func(context.Context, string) (string, error) {
			runs++
			return response("Global", "", "*.*", password.Load().(string)), nil
		})
		wanted, requests := "one", 0
		c, logs := newClient(t, func(cfg *registry.Config) { cfg.Plugins = plugins })
		c.AnswerWith(func(r *http.Request) int {
			requests++
			if _, p, _ := r.BasicAuth(); p != wanted {
				return http.StatusUnauthorized
			}
			return http.StatusOK
		})
		read := func(path string, want error, wantRuns, wantRequests int) {
			t.Helper()
			runs, requests = 0, 0
			repo, err := c.Repository("a.io/" + path)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = repo.Manifest(t.Context(), describe([]byte("ok")).Digest)
			if !errors.Is(err, want) || runs != wantRuns || requests != wantRequests {
				t.Errorf("%s: %v, %d runs and %d requests; want %v, %d and %d", path, err, runs, requests, want, wantRuns, wantRequests)
			}
		}
		read("some/image", nil, 1, 2)
		time.Sleep(time.Minute)
		wanted = "two"
		password.Store("two")
		read("some/image", nil, 1, 2)
		time.Sleep(time.Minute)
		wanted = "three"
		password.Store("three")
		read("other/image", nil, 1, 3)
		time.Sleep(time.Minute)
		wanted = "four"
		read("other/image", blockfmt.ErrDenied, 1, 1)
		read("other/image", blockfmt.ErrDenied, 0, 1)
		read("some/image", blockfmt.ErrDenied, 0, 2) // which had an older one
		if logs.count("three") > 0 {
			t.Error("a password is in the log")
		}
	})
}
