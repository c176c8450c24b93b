package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/cmd/xylem/setup"
	"github.com/xylem-project/xylem/hack/containerdtest"
)

// containerds are the versions that setup is tried with.
func containerds(t *testing.T) map[string]containerdtest.Options {
	t.Helper()
	two, err := containerdtest.Build(t.Context(), "../../hack/cache")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]containerdtest.Options{"1.6": {Binary: "containerd"}, "2.4": two}
}

// After setup, a real containerd starts, knows the snapshotter, uses it for pods, and pulls although no proxy is there.
func TestSetupRealContainerd(t *testing.T) {
	for version, options := range containerds(t) {
		t.Run(version, func(t *testing.T) {
			dir := shortDir(t)
			n := &node{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), ref: pushImage(t, true)}
			n.startAgent(t)
			registry, _, _ := strings.Cut(n.ref, "/")
			options.Dir, options.CRI, options.Registries = filepath.Join(dir, "ctrd"), true, []string{registry}
			config := filepath.Join(options.Dir, "config.toml")
			command := n.args("setup", "containerd", "--containerd", options.Binary, "--containerd-config", config, "--registry", registry)
			var before []byte
			options.Start = func(cmd *exec.Cmd) (err error) {
				if before, err = os.ReadFile(config); err != nil {
					return err
				}
				if r := do(t, command...); r.code != 0 {
					t.Errorf("setup: %+v", r)
				}
				return cmd.Start()
			}
			d, err := containerdtest.Start(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := d.Stop(); err != nil {
					t.Error(err)
				}
			})
			n.address = d.Address
			checkSetup(t, n, options.Binary, config)
			if r := do(t, append(command, "--uninstall")...); r.code != 0 {
				t.Errorf("uninstall: %+v", r)
			}
			if after, err := os.ReadFile(config); err != nil || string(after) != string(before) {
				t.Errorf("%v: got %s, want %s", err, after, before)
			}
		})
	}
}

func checkSetup(t *testing.T, n *node, binary, config string) {
	t.Helper()
	d := doctor{config: agent.Default(), address: n.address, containerd: binary, containerdConfig: config}
	d.config.State = n.state
	findings := append(d.checkContainerdConfig(t.Context()), d.checkContainerd(t.Context())...)
	for _, check := range []string{"proxy_plugins", "CRI", "registry proxy", "containerd.sock", "snapshotter"} {
		checkFinding(t, findings, check, statusOK)
	}
	pullAsKubelet(t, n.address, n.ref)
}

// _default leads pods' pulls of a registry that is named nowhere to the proxy, which is told whose image it is. Neither the
// agent nor the snapshotter have to be there.
func TestSetupPullsThroughProxy(t *testing.T) {
	for version, options := range containerds(t) {
		t.Run(version, func(t *testing.T) {
			ref := pushImage(t, true)
			registry, _, _ := strings.Cut(ref, "/")
			var asked atomic.Int64
			forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("ns") != registry {
					t.Errorf("asked for %s", r.URL)
				}
				asked.Add(1)
				forward.ServeHTTP(w, r)
			}))
			defer proxy.Close()
			options.Dir, options.CRI = filepath.Join(shortDir(t), "ctrd"), true
			options.Start = func(cmd *exec.Cmd) error {
				_, err := setup.Install(t.Context(), setup.Options{
					ConfigFile: filepath.Join(options.Dir, "config.toml"), Binary: options.Binary, Proxy: proxy.URL, Socket: "/does/not/exist.sock",
				})
				return errors.Join(err, cmd.Start())
			}
			d, err := containerdtest.Start(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := d.Stop(); err != nil {
					t.Error(err)
				}
			}()
			pullAsKubelet(t, d.Address, ref)
			if n := asked.Load(); n < 4 { // manifest, config and two layers
				t.Errorf("the proxy was asked %d times", n)
			}
		})
	}
}

func pullAsKubelet(t *testing.T, address, ref string) {
	t.Helper()
	client, err := containerd.New(address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	images := cri.NewImageServiceClient(client.Conn().(grpc.ClientConnInterface))
	if _, err := images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Error(err)
	}
}

// What containerd prints as its default is accepted by it with our settings, and so are other beginnings.
func TestSetupOfDefaults(t *testing.T) {
	for version, options := range containerds(t) {
		defaults, err := exec.CommandContext(t.Context(), options.Binary, "config", "default").Output()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		config := filepath.Join(dir, "config.toml")
		texts := map[string]string{
			"none": "", "default": strings.ReplaceAll(string(defaults), "/etc/containerd", dir),
			"version 2": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native' # mine\n",
		}
		for name, text := range texts {
			t.Run(version+"/"+name, func(t *testing.T) {
				if text != "" {
					if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				command := []string{"--root", dir, "setup", "containerd", "--containerd", options.Binary, "--containerd-config", config, "--certs-dir", filepath.Join(dir, "certs.d"), "--output", "json"}
				setUpAndBack(t, command)
				if after, _ := os.ReadFile(config); string(after) != text {
					t.Errorf("%s is left", after)
				}
				_ = os.Remove(config)
			})
		}
	}
}

// setUpAndBack expects changes, none the second time, and the same number of them back.
func setUpAndBack(t *testing.T, command []string) {
	t.Helper()
	for i, args := range [][]string{command, command, append(command, "--uninstall")} {
		var result setupResult
		r := do(t, args...)
		if err := json.Unmarshal([]byte(r.out), &result); err != nil || r.code != 0 {
			t.Fatalf("%v: %+v, %v", args, r, err)
		}
		if want := []int{2, 0, 2}[i]; len(result.Changes) != want || (result.Next == restartContainerd) != (want > 0) {
			t.Errorf("%v: %d changes, want %d: %s", args, len(result.Changes), want, r.out)
		}
	}
}

// A file that is imported after ours and says otherwise is found out before anything is written.
func TestSetupOverridden(t *testing.T) {
	dir := t.TempDir()
	config, other := filepath.Join(dir, "config.toml"), filepath.Join(dir, "other.toml")
	text := "version = 2\nimports = [\n  \"" + other + "\", # theirs\n]\n"
	for path, text := range map[string]string{config: text, other: "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'native'\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	do(t, "setup", "containerd", "--containerd-config", config).checkFailed(t, 1, config, "imports overrides", "snapshotter", "nothing was changed")
	if after, err := os.ReadFile(config); err != nil || string(after) != text {
		t.Errorf("%s, %v", after, err)
	}
}

func TestSetupPrints(t *testing.T) {
	dir := t.TempDir()
	args := []string{"--root", dir, "setup", "containerd", "--containerd-config", filepath.Join(dir, "config.toml"), "--certs-dir", filepath.Join(dir, "certs.d")}
	tests := []struct {
		flag string
		say  []string
	}{
		{"--dry-run", []string{"+[proxy_plugins.xylem]\n", "nothing was changed (--dry-run)\n"}},
		{"--snapshotter=on", []string{"config.toml: created\n", "hosts.toml: created\n", "backup: " + filepath.Join(dir, "xylem-setup") + "\n", "now run: systemctl restart containerd\n"}},
		{"--snapshotter=on", []string{"nothing to change\n"}},
		{"--uninstall", []string{"config.toml: removed\n", "now run: systemctl restart containerd\n"}},
		{"--uninstall", []string{"nothing to change\n"}},
	}
	for _, test := range tests {
		r := do(t, append(args, test.flag)...)
		for _, say := range test.say {
			if r.code != 0 || !strings.Contains(r.out, say) {
				t.Errorf("%s: %+v is without %q", test.flag, r, say)
			}
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDoctorHosts(t *testing.T) {
	const proxied, other = "[host.\"http://127.0.0.1:9751\"]\n", "[host.\"http://127.0.0.1:5000\"]\n"
	tests := []struct {
		name, version, configPath string
		transfer                  bool
		files                     map[string]string
		want                      status
		words                     []string
	}{
		{"1.x without", "1.6", "", false, nil, statusWarn, []string{"reads no hosts.toml", "xylem setup containerd"}},
		{"default", "1.6", "DIR/a", false, map[string]string{"a/_default": proxied, "a/docker.io": other}, statusOK, []string{"all registries", "of their own have docker.io"}},
		{"named", "1.6", "DIR/a", false, map[string]string{"a/docker.io": proxied}, statusOK, []string{"docker.io through"}},
		{"elsewhere", "1.6", "DIR/a", false, map[string]string{"a/_default": other}, statusWarn, []string{"leads to http://127.0.0.1:9751"}},
		{"bad file", "1.6", "DIR/a", false, map[string]string{"a/_default": "x"}, statusWarn, []string{"a/_default/hosts.toml"}},
		{"two directories", "2.2", "DIR/a:DIR/b", false, map[string]string{"a/_default": proxied}, statusOK, nil},
		{"two directories, transfer service", "2.2", "DIR/a:DIR/b", true, map[string]string{"a/_default": proxied}, statusWarn, []string{"name of one directory"}},
		{"in the second", "2.2", "DIR/a:DIR/b", false, map[string]string{"b/_default": proxied}, statusWarn, []string{"second directory", "b/_default"}},
		{"shadowed by _default", "2.2", "DIR/a:DIR/b", false, map[string]string{"a/_default": other, "b/docker.io": proxied}, statusWarn, []string{"finds DIR/a/_default first"}},
		{"shadowed by the same", "2.2", "DIR/a:DIR/b", false, map[string]string{"a/docker.io": other, "b/docker.io": proxied}, statusWarn, []string{"finds DIR/a/docker.io first"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{}
			for name, text := range test.files {
				files[name+"/hosts.toml"] = text
			}
			dir := fakeSystem(t, files)
			version, err := setup.ParseVersion(test.version)
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("[plugins.'io.containerd.cri.v1.images']\ndisable_snapshot_annotations = %v\nregistry.config_path = %q\n",
				test.transfer, strings.ReplaceAll(test.configPath, "DIR", dir))
			var c setup.ContainerdConfig
			if err := toml.Unmarshal([]byte(text), &c); err != nil {
				t.Fatal(err)
			}
			d := doctor{config: agent.Default()}
			for i, w := range test.words {
				test.words[i] = strings.ReplaceAll(w, "DIR", dir)
			}
			checkFinding(t, []finding{d.checkHosts(&c, version)}, "registry proxy", test.want, test.words...)
		})
	}
}
