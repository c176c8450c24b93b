package agent

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// TestPluginCredentialsForClients: with share_credentials those of a credential provider plugin of the kubelet serve clients without
// any; they are in no log, and what the plugin says when it fails is.
func TestPluginCredentialsForClients(t *testing.T) {
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	w := newWorld(t, twoLayers())
	want, err := pullAll(t, w.ref)
	must(t, err)
	for kind, bearer := range map[string]bool{"bearer": true, "basic": false} {
		t.Run(kind, func(t *testing.T) {
			host := strings.TrimPrefix(locked(t, w, bearer).URL, "http://")
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "answer"), []byte(`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse",
				"cacheKeyType":"Registry","auth":{"`+host+`":{"username":"alice","password":"secret"}}}`), 0o600))
			for _, what := range []string{"answer", "fail"} { // of testdata/plugin
				config := filepath.Join(dir, what+".yaml")
				must(t, os.WriteFile(config, []byte(`{apiVersion: kubelet.config.k8s.io/v1, kind: CredentialProviderConfig, providers: [{name: plugin,
					apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ["`+host+`"], defaultCacheDuration: 1h, args: [`+what+`],
					env: [{name: PLUGIN_DIR, value: `+dir+`}]}]}`), 0o600))
				cfg := proxyConfig(t, host)
				cfg.Proxy.ShareCredentials = true
				cfg.CredentialProviderConfig = config
				cfg.CredentialProviderBinDir, err = filepath.Abs("registry/testdata")
				must(t, err)
				n := startNode(t, cfg)
				got, err := pullAll(t, cfg.Proxy.Listen+"/app:v1")
				if ok := err == nil && got == want; ok != (what == "answer") {
					t.Errorf("plugin that should %s: %v", what, err)
				}
				var answer *transport.Error
				if what == "fail" && (!errors.As(err, &answer) || answer.StatusCode != http.StatusServiceUnavailable) {
					t.Errorf("a plugin that fails: %v, want 503", err)
				}
				must(t, n.stop())
				if log := n.log.String(); strings.Contains(log, "no role for this machine") != (what == "fail") || strings.Contains(log, `secret"`) || strings.Contains(log, "hunter2") {
					t.Errorf("log of a plugin that should %s: %s", what, log)
				}
			}
		})
	}
}
