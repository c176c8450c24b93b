package clienttest

import (
	"path/filepath"
	"testing"

	"github.com/xylem-project/xylem/hack/containerdtest"
)

// TestLoginsWhileTheRegistryIsDown: who has pulled a private image by user and password can do so without the registry, with the clients'
// ordinary ways to log in; nobody else can.
func TestLoginsWhileTheRegistryIsDown(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	o.lock("ann", "secret")
	proxy := serveProxy(t, o.host)
	ref := proxy + "/app:1"
	copied := func(credentials string) error {
		_, err := output(skopeo(t, "copy", "--src-creds", credentials, "--src-tls-verify=false", "docker://"+ref, "dir:"+t.TempDir()))
		return err
	}
	two, err := containerdtest.Build(t.Context(), filepath.Join("..", "cache"))
	must(t, err)
	versions := map[string]containerdtest.Options{"1.6": {Mirror: proxy}, "2.4": {Mirror: proxy, Binary: two.Binary, Ctr: two.Ctr}}
	pulled := func(t *testing.T, opts containerdtest.Options) {
		t.Helper()
		d := startContainerd(t, opts)
		run(t, d.Ctr(t.Context(), "image", "pull", "--user", "ann:secret", "--hosts-dir", d.HostsDir(), o.host+"/app:1"))
	}
	must(t, copied("ann:secret"))
	for _, opts := range versions { // what a tag names is known for each way to ask
		pulled(t, opts)
	}
	o.end()

	must(t, copied("ann:secret"))
	if err := copied("bob:secret"); err == nil {
		t.Error("somebody else pulls it")
	}
	e := newEngine(t, "podman", proxy)
	for _, password := range []string{"wrong", "secret"} { // nobody can check them now
		run(t, e.command("login", "--tls-verify=false", "--username", "ann", "--password", password, proxy))
	}
	run(t, e.command("pull", somewhere+"/app:1"))
	for version, opts := range versions { // new ones, that have nothing
		t.Run(version, func(t *testing.T) { pulled(t, opts) })
	}
	o.wasRead(t, append(i.own, i.others[0])...) // ctr reads the configs of all platforms
}
