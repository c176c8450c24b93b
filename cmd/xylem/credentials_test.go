package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pluginScript is a credential provider plugin that answers for one registry, or fails.
const pluginScript = `#!/bin/sh
if [ -n "$PLUGIN_FAILS" ]; then
	echo "no role for this machine" >&2
	exit 3
fi
echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry",
	"auth":{"%s":{"username":"ann","password":"hunter2"}}}'
`

// pluginWorld is a registry that wants a password, which a plugin knows.
type pluginWorld struct {
	ref                  string
	config, failing, dir string // configurations of the plugin, one with which it fails, and the directory of its program
}

func newPluginWorld(t *testing.T) pluginWorld {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // nothing else knows it
	open := pushImage(t, true)
	host, path, _ := strings.Cut(open, "/")
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	forward.Transport = transport
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "hunter2" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	locked := strings.TrimPrefix(server.URL, "http://")
	files := fakeSystem(t, map[string]string{
		"bin/plugin":   fmt.Sprintf(pluginScript, locked),
		"config.yaml":  providerConfig("plugin", locked, ""),
		"failing.yaml": providerConfig("plugin", locked, "env: [{name: PLUGIN_FAILS, value: yes it does}],"),
	})
	if err := os.Chmod(filepath.Join(files, "bin", "plugin"), 0o755); err != nil {
		t.Fatal(err)
	}
	return pluginWorld{locked + "/" + path, filepath.Join(files, "config.yaml"), filepath.Join(files, "failing.yaml"), filepath.Join(files, "bin")}
}

func providerConfig(name, image, more string) string {
	return fmt.Sprintf(`{apiVersion: kubelet.config.k8s.io/v1, kind: CredentialProviderConfig, providers: [{name: %s, %s
		apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ["%s"], defaultCacheDuration: 1h}]}`, name, more, image)
}

// TestPluginCredentialsForCommands: convert and inspect read and write with the credentials of plugins, by flags and by the agent's configuration.
func TestPluginCredentialsForCommands(t *testing.T) {
	w := newPluginWorld(t)
	root := []string{"--root", t.TempDir()}
	flags := []string{"--credential-provider-config", w.config, "--credential-provider-bin-dir", w.dir}
	do(t, append(root, "inspect", w.ref)...).checkFailed(t, 1, "denied", "log in")
	do(t, append(root, "convert", w.ref, "--push")...).checkFailed(t, 1, "denied", "log in")
	if r := do(t, append(append(root, "--log-level", "error", "convert", w.ref, "--push"), flags...)...); r.code != 0 || r.stderr != "" {
		t.Fatalf("convert: %+v", r)
	}
	config := filepath.Join(t.TempDir(), "agent.toml")
	text := fmt.Sprintf("credential_provider_config = %q\ncredential_provider_bin_dir = %q\n", w.config, w.dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := do(t, append(root, "--config", config, "inspect", w.ref)...); r.code != 0 || !strings.Contains(r.out, "block image") {
		t.Errorf("inspect: %+v", r)
	}

	for _, command := range [][]string{{"inspect", w.ref}, {"convert", w.ref, "--push"}} {
		r := do(t, append(append(root, command...), "--credential-provider-config", w.failing, "--credential-provider-bin-dir", w.dir)...)
		r.stderr = lastLine(r.stderr) // the log has it too
		r.checkFailed(t, 1, "plugin plugin for "+strings.TrimSuffix(w.ref, ":1"), "exit status 3", "no role for this machine", "see what credential provider plugin plugin needs")
		if strings.Contains(r.stderr, "denied") {
			t.Errorf("%v: it is said to be the registry's refusal: %s", command, r.stderr)
		}
		do(t, append(append(root, command...), flags[:2]...)...).checkFailed(t, 2, "must be set together")
		do(t, append(append(root, command...), "--credential-provider-config", w.config, "--credential-provider-bin-dir", t.TempDir())...).checkFailed(t, 1, "plugin", "no such file", "xylem doctor")
	}
}

func lastLine(text string) string {
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1] + "\n"
}

// TestDoctorPlugins: doctor looks at the file, the directory, and every program.
func TestDoctorPlugins(t *testing.T) {
	w := newPluginWorld(t)
	files := fakeSystem(t, map[string]string{
		"two.yaml":    strings.Replace(providerConfig("plugin", "a.example", ""), "providers: [", "providers: [{name: gone, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [b.example], defaultCacheDuration: 1h}, ", 1),
		"broken.yaml": "providers: [",
		"other.yaml":  "{apiVersion: v1, kind: Pod}",
		"pods.yaml":   providerConfig("pods", "a.example", "tokenAttributes: {requireServiceAccount: true},"),
		"bin/plugin":  "not executable",
	})
	at := func(name string) string { return filepath.Join(files, name) }
	const check = "credential plugins"
	for name, test := range map[string]struct {
		config, dir string
		want        status
		words       []string
	}{
		"good":                 {w.config, w.dir, statusOK, []string{"plugin", "127.0.0.1"}},
		"no file":              {at("none.yaml"), w.dir, statusFail, []string{"none.yaml", "credential_provider_config"}},
		"no YAML":              {at("broken.yaml"), w.dir, statusFail, []string{"broken.yaml"}},
		"something else":       {at("other.yaml"), w.dir, statusFail, []string{"other.yaml", "Pod"}},
		"no directory":         {w.config, at("none"), statusFail, []string{at("none"), "credential_provider_bin_dir"}},
		"a file for it":        {w.config, w.config, statusFail, []string{"no directory"}},
		"not executable":       {w.config, at("bin"), statusFail, []string{"plugin", "permission denied", "executable"}},
		"one of two":           {at("two.yaml"), w.dir, statusFail, []string{"gone", "no such file", w.dir}},
		"for pods":             {at("pods.yaml"), w.dir, statusWarn, []string{"service accounts"}},
		"directory is missing": {w.config, "", statusFail, []string{"set credential_provider_bin_dir"}},
		"file is missing":      {"", w.dir, statusFail, []string{"set credential_provider_config"}},
		"relative":             {"config.yaml", "bin", statusFail, []string{"absolute"}},
	} {
		t.Run(name, func(t *testing.T) {
			var d doctor
			d.config.CredentialProviderConfig, d.config.CredentialProviderBinDir = test.config, test.dir
			findings := d.checkPlugins(t.Context())
			checkFinding(t, findings, check, test.want, test.words...)
			if name == "one of two" && (len(findings) != 2 || findings[1].Status != statusOK) {
				t.Errorf("%+v, want one for each plugin", findings)
			}
		})
	}
	if findings := (&doctor{}).checkPlugins(t.Context()); len(findings) != 0 {
		t.Errorf("without plugins: %+v", findings)
	}
}
