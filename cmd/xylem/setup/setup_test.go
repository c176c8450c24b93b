package setup

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite testdata/*.txt with what setup does now")

// node is a directory that stands for /etc/containerd.
type node struct {
	dir     string
	options Options
}

// newNode makes one with these files, each "name: text". There is no containerd on it, so its version is given.
func newNode(t *testing.T, version string, files map[string]string) *node {
	t.Helper()
	n := &node{dir: t.TempDir()}
	v, err := ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	n.options = Options{
		ConfigFile: n.path("config.toml"), CertsDir: n.path("certs.d"), Binary: "/does/not/exist", Version: v,
		Proxy: "http://127.0.0.1:9751", Socket: "/run/xylem/agent.sock", Pods: true,
	}
	for name, text := range files {
		n.write(t, name, text)
	}
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// write makes a file; "DIR" in its text stands for the node's directory.
func (n *node) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(n.path(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.path(name), []byte(strings.ReplaceAll(text, "DIR", n.dir)), 0o640); err != nil {
		t.Fatal(err)
	}
}

func (n *node) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(n.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tree is everything that is there, with modes.
func (n *node) tree(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.Walk(n.dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		text := info.Mode().String()
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += "\n" + string(data)
		}
		found[strings.TrimPrefix(path, n.dir)] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func sameTree(t *testing.T, got, want map[string]string) {
	t.Helper()
	for path, text := range want {
		if got[path] != text {
			t.Errorf("%s is %q, want %q", path, got[path], text)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s is there", path)
		}
	}
}

func (n *node) install(t *testing.T) *Result {
	t.Helper()
	r, err := Install(t.Context(), n.options)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (n *node) uninstall(t *testing.T) *Result {
	t.Helper()
	r, err := Uninstall(n.options)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// transcript is what a run says, the way users see it with --dry-run.
func (n *node) transcript(r *Result) string {
	var out strings.Builder
	for _, c := range r.Changes {
		fmt.Fprintf(&out, "%s %s\n%s\n", c.Action, c.Path, c.Diff)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&out, "note: %s\n", note)
	}
	return strings.ReplaceAll(out.String(), n.dir, "/etc/containerd")
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const userConfig1 = `# Managed by the platform team. Do not edit on nodes.
version = 2 # of the format

[plugins]
  # where pods get their images
  [plugins."io.containerd.grpc.v1.cri".registry]
    # below it: mirrors of the company
    config_path = "DIR/certs.d"   # see wiki
  [plugins."io.containerd.grpc.v1.cri".containerd]
	snapshotter = 'overlayfs'	# tested with 5.10
	[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
	  runtime_type = "io.containerd.runc.v2"
[proxy_plugins.stargz]
type = "snapshot"
address = "/run/stargz.sock"

[future]
whatever = { a = 1 } # no newline behind it`

const userConfig2 = `version = 3
imports = []
[plugins.'io.containerd.cri.v1.images']
  disable_snapshot_annotations = true
  registry.config_path = ''
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = 'linux/amd64'
  snapshotter = 'overlayfs'
`

const userHosts = `# pulls of the company go to its own mirror
server = "https://registry-1.docker.io"

[host."https://mirror.example"]
  capabilities = ["pull"]
  [host."https://mirror.example".header]
    x-team = "platform"
`

// cases are configurations as users have them, for the transcripts and for everything that has to hold of each.
func cases(t *testing.T) map[string]*node {
	t.Helper()
	named := newNode(t, "2.4", map[string]string{"config.toml": "version = 3\n", "certs.d/docker.io/hosts.toml": userHosts})
	named.options.Registries = []Upstream{{Host: "docker.io"}, {Host: "registry.example:5000"}, {Host: "127.0.0.1:5000", PlainHTTP: true}}
	off := newNode(t, "1.7", map[string]string{"config.toml": "version = 2\n"})
	off.options.Pods = false
	found := newNode(t, "2.2", map[string]string{"config.toml": "version = 3\nplugins.'io.containerd.cri.v1.images'.registry.config_path = 'DIR/hosts:DIR/none'\n"})
	found.options.CertsDir = ""
	snapshotter := newNode(t, "1.6", map[string]string{"config.toml": "version = 2\n"})
	snapshotter.options.Proxy = ""
	return map[string]*node{
		"1.x-no-proxy":   snapshotter,
		"1.x-none":       newNode(t, "1.6", nil),
		"1.x-empty":      newNode(t, "1.6", map[string]string{"config.toml": ""}),
		"1.x-default":    newNode(t, "1.6", map[string]string{"config.toml": testdata(t, "default-1.6.toml")}),
		"1.x-user":       newNode(t, "1.7", map[string]string{"config.toml": userConfig1, "certs.d/docker.io/hosts.toml": userHosts, "certs.d/_default/hosts.toml": userHosts}),
		"1.x-off":        off,
		"2.x-none":       newNode(t, "2.4", nil),
		"2.x-comments":   newNode(t, "2.0", map[string]string{"config.toml": "# nothing yet\n"}),
		"2.x-default":    newNode(t, "2.4", map[string]string{"config.toml": strings.ReplaceAll(testdata(t, "default-2.4.toml"), "/etc/containerd", "DIR")}),
		"2.x-user":       newNode(t, "2.1", map[string]string{"config.toml": userConfig2}),
		"2.x-version-2":  newNode(t, "2.4", map[string]string{"config.toml": userConfig1}),
		"2.x-registries": named,
		"2.x-certs-dir":  found,
	}
}

func TestTranscripts(t *testing.T) {
	for name, n := range cases(t) {
		t.Run(name, func(t *testing.T) {
			got := n.transcript(n.install(t))
			file := filepath.Join("testdata", name+".txt")
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := testdata(t, name+".txt"); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// A dry run changes nothing, a second run finds nothing to do, and uninstalling leaves every byte as it was.
func TestThereAndBackAgain(t *testing.T) {
	for name, n := range cases(t) {
		t.Run(name, func(t *testing.T) {
			before := n.tree(t)
			n.options.DryRun = true
			dry := n.transcript(n.install(t))
			sameTree(t, n.tree(t), before)
			n.options.DryRun = false
			if got := n.transcript(n.install(t)); got != dry {
				t.Errorf("the dry run said\n%s\nthe real one\n%s", dry, got)
			}
			after := n.tree(t)
			if again := n.install(t); len(again.Changes) > 0 {
				t.Errorf("the second run changed %s", n.transcript(again))
			}
			sameTree(t, n.tree(t), after)
			n.uninstall(t)
			sameTree(t, n.tree(t), before)
			if again := n.uninstall(t); len(again.Changes) > 0 {
				t.Errorf("the second uninstall changed %s", n.transcript(again))
			}
		})
	}
}

// What the user wrote after setup stays, on a second run and when xylem's lines are taken out.
func TestEditedMeanwhile(t *testing.T) {
	for name, n := range cases(t) {
		t.Run(name, func(t *testing.T) {
			n.install(t)
			target := "config.toml"
			if _, err := os.Stat(n.path("conf.d/xylem.toml")); err == nil {
				target = "conf.d/xylem.toml"
			}
			const mine = "\n# mine\n[mine]\n  key = 1\n"
			before := n.tree(t)
			n.write(t, target, "# also mine\n"+n.read(t, target)+mine)
			if again := n.install(t); len(again.Changes) > 0 {
				t.Errorf("the second run changed %s", n.transcript(again))
			}
			r := n.uninstall(t)
			if !strings.Contains(n.transcript(r), "was edited since") {
				t.Errorf("uninstall does not say that it left something: %s", n.transcript(r))
			}
			text := n.read(t, target)
			if !strings.HasPrefix(text, "# also mine\n") || !strings.HasSuffix(text, mine) || strings.Contains(text, "xylem") {
				t.Errorf("%s is\n%s\nafter having been\n%s", target, text, before["/"+target])
			}
		})
	}
}

// A line of xylem's that the user changed is his, and the others are taken out.
func TestChangedLineOfOurs(t *testing.T) {
	n := newNode(t, "1.6", map[string]string{"config.toml": testdata(t, "default-1.6.toml")})
	n.install(t)
	n.write(t, "config.toml", strings.Replace(n.read(t, "config.toml"), `snapshotter = "xylem"`, `snapshotter = "stargz"`, 1))
	r := n.uninstall(t)
	want := strings.Replace(testdata(t, "default-1.6.toml"), `snapshotter = "overlayfs"`, `snapshotter = "stargz"`, 1)
	if got := n.read(t, "config.toml"); got != want {
		t.Errorf("got\n%s", unified("config.toml", []byte(want), []byte(got)))
	}
	if text := n.transcript(r); !strings.Contains(text, `left as it was changed since the last setup: snapshotter = "xylem"`) {
		t.Error(text)
	}
}

// Settings of the user that need xylem's are pointed out.
func TestStillUsed(t *testing.T) {
	n := newNode(t, "2.4", map[string]string{"config.toml": "version = 3\n"})
	n.install(t)
	n.write(t, "config.toml", n.read(t, "config.toml")+"\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.fast]\nsnapshotter = 'xylem'\n")
	if text := n.transcript(n.uninstall(t)); !strings.Contains(text, "still names the snapshotter xylem") {
		t.Error(text)
	}
}

// What is no TOML any more is not touched.
func TestBrokenMeanwhile(t *testing.T) {
	n := newNode(t, "2.4", map[string]string{"config.toml": "version = 3\n"})
	n.install(t)
	n.write(t, "config.toml", "[\n"+n.read(t, "config.toml"))
	before := n.tree(t)
	var refused *Error
	if _, err := Uninstall(n.options); !errors.As(err, &refused) || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
	if _, err := Install(t.Context(), n.options); !errors.As(err, &refused) || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
	sameTree(t, n.tree(t), before)
}

// A key that the user put into our table would end up in the table before it, so the table stays.
func TestKeyInTableOfOurs(t *testing.T) {
	n := newNode(t, "1.6", map[string]string{"config.toml": "version = 2\n[debug]\n  level = \"info\"\n"})
	n.install(t)
	n.write(t, "config.toml", strings.Replace(n.read(t, "config.toml"), "agent.sock\"\n", "agent.sock\"\n  platform = \"linux/amd64\"\n", 1))
	n.uninstall(t)
	if got := n.read(t, "config.toml"); !strings.Contains(got, "[proxy_plugins.xylem]") || strings.Contains(got, "config_path") {
		t.Errorf("got %s", got)
	}
}

// Other options take back what the options before asked for.
func TestOtherOptions(t *testing.T) {
	n := newNode(t, "2.4", map[string]string{"config.toml": "version = 3\n"})
	before := n.tree(t)
	n.install(t)
	n.options.Pods, n.options.Registries = false, []Upstream{{Host: "docker.io"}}
	n.install(t)
	if _, err := os.Stat(n.path("certs.d/_default")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("_default: %v", err)
	}
	if text := n.read(t, "config.toml"); strings.Contains(text, "disable_snapshot_annotations") || !strings.Contains(text, "proxy_plugins.xylem") {
		t.Error(text)
	}
	n.uninstall(t)
	sameTree(t, n.tree(t), before)
}

func TestSymlinkStays(t *testing.T) {
	n := newNode(t, "1.6", map[string]string{"real/config.toml": "version = 2\n"})
	if err := os.Symlink("real/config.toml", n.path("config.toml")); err != nil {
		t.Fatal(err)
	}
	n.install(t)
	if target, err := os.Readlink(n.path("config.toml")); err != nil || target != "real/config.toml" {
		t.Errorf("%q, %v", target, err)
	}
	n.uninstall(t)
	if text := n.read(t, "real/config.toml"); text != "version = 2\n" {
		t.Error(text)
	}
}

// The directory may be reached through a symbolic link.
func TestDirectoryBehindSymlink(t *testing.T) {
	n := newNode(t, "1.6", map[string]string{"real/config.toml": "version = 2\n"})
	if err := os.Symlink("real", n.path("etc")); err != nil {
		t.Fatal(err)
	}
	before := n.tree(t)
	n.options.ConfigFile, n.options.CertsDir = n.path("etc/config.toml"), n.path("etc/certs.d")
	n.install(t)
	if again := n.install(t); len(again.Changes) > 0 {
		t.Errorf("the second run changed %s", n.transcript(again))
	}
	n.uninstall(t)
	sameTree(t, n.tree(t), before)
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name, version string
		files         map[string]string
		say           string
	}{
		{"bad TOML", "1.6", map[string]string{"config.toml": "version = 2\n[x\n"}, "config.toml: line 2"},
		{"wrong type", "1.6", map[string]string{"config.toml": "version = \"2\"\n"}, "config.toml: line 1"},
		{"version 1", "1.6", map[string]string{"config.toml": "disabled_plugins = [\"cri\"]\n"}, "version 1"},
		{"version 1, plugins", "2.4", map[string]string{"config.toml": "[plugins.opt]\npath = \"/opt\"\n"}, "version 1"},
		{"version 3 for 1.x", "1.7", map[string]string{"config.toml": "version = 3\n"}, "does not read version 3"},
		{"mirrors", "1.6", map[string]string{"config.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'docker.io']\nendpoint = ['https://x']\n"}, "mirrors"},
		{"TLS", "1.7", map[string]string{"config.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'x'.tls]\nca_file = 'x'\n"}, "tls"},
		{"inline table", "1.6", map[string]string{"config.toml": "version = 2\nproxy_plugins = { other = { type = \"content\" } }\n"}, "config.toml: line 2: write the inline table"},
		{"bad hosts.toml", "1.6", map[string]string{"certs.d/_default/hosts.toml": "server = \n"}, "_default/hosts.toml: line 1"},
		{"certificates", "1.6", map[string]string{"certs.d/_default/ca.crt": "x"}, "ca.crt"},
		{"two directories", "2.2", map[string]string{
			"config.toml":              "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = 'DIR/certs.d:DIR/docker'\n",
			"docker/reg.example/x.crt": "x"}, "docker/reg.example would no longer be read"},
		{"other directory", "2.2", map[string]string{"config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/other'\n"}, "from /other"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t, test.version, test.files)
			before := n.tree(t)
			_, err := Install(t.Context(), n.options)
			var refused *Error
			if !errors.As(err, &refused) || refused.Advice == "" || !strings.Contains(err.Error(), test.say) {
				t.Errorf("got %v, want a refusal with %q and advice", err, test.say)
			}
			sameTree(t, n.tree(t), before)
		})
	}
}

func TestStrip(t *testing.T) {
	tests := []struct{ name, original, written, current, want, left string }{
		{"replaced line", "a\nb\nc\n", "a\nB\nc\n", "0\na\nB\nc\n1\n", "0\na\nb\nc\n1\n", ""},
		{"two lines, one of them changed", "a\nb\n", "A\nB\n", "A\nX\n", "a\nX\n", "B\n"},
		{"insertion", "a\n", "a\nx\ny\n", "a\nx\ny\nz\n", "a\nz\n", ""},
		{"insertion that is gone", "a\n", "a\nx\n", "a\n", "a\n", "x\n"},
		{"insertion with something in it", "a\n", "a\nx\ny\n", "a\nx\n-\ny\n", "a\nx\n-\ny\n", "x\ny\n"},
		{"no newline at the end", "a", "a\nx\n", "a\nx\n", "a", ""},
		{"our table, his key", "a = 1\n", "a = 1\n[t]\nx = 1\n", "a = 1\n[t]\nx = 1\ny = 1\n", "a = 1\n[t]\nx = 1\ny = 1\n", "[t]\nx = 1\n"},
		{"our table, his table", "a = 1\n", "a = 1\n[t]\nx = 1\n", "a = 1\n[t]\nx = 1\n# his\n[u]\n", "a = 1\n# his\n[u]\n", ""},
		{"everything gone", "a\n", "a\nx\n", "", "", "x\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, left := strip([]byte(test.original), []byte(test.written), []byte(test.current))
			if string(got) != test.want || strings.Join(left, "") != test.left {
				t.Errorf("got %q and left %q, want %q and %q", got, left, test.want, test.left)
			}
		})
	}
}

func TestUnified(t *testing.T) {
	before, after := "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n", "1\n2\n3\nfour\n5\n6\n7\n8\nnine\n10\n11\n12\n"
	want := "--- f\n+++ f\n@@ line 4 @@\n 2\n 3\n-4\n+four\n 5\n 6\n 7\n 8\n-9\n+nine\n 10\n 11\n+12\n"
	if got := unified("f", []byte(before), []byte(after)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	want = "--- f\n+++ f\n@@ line 1 @@\n-1\n 2\n 3\n@@ line 9 @@\n 7\n 8\n-9\n 10\n 11\n"
	if got := unified("f", []byte(before), []byte("2\n3\n4\n5\n6\n7\n8\n10\n11\n")); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Whatever the texts are, xylem's lines go into an untouched text and out again without a trace.
func FuzzStrip(f *testing.F) {
	f.Add([]byte("a\nb\n"), []byte("a\nx\nb"))
	f.Fuzz(func(t *testing.T, original, written []byte) {
		if len(original)+len(written) > 1<<12 {
			t.Skip("the comparison is quadratic")
		}
		got, left := strip(original, written, written)
		if len(left) == 0 && !bytes.Equal(got, original) {
			t.Errorf("strip(%q, %q) = %q", original, written, got)
		}
	})
}

// Whatever the user's file is: the result is TOML that has the value, or the file is refused.
func FuzzSet(f *testing.F) {
	for _, seed := range []string{"", userConfig1, userConfig2, userHosts, "a.b = 1\n[a.c]\n", "a = {b = 1}", "[[a]]\n[a.b]\n", "\"a\".'b' = \"\"\"\n\"\"\" # x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := newDocument([]byte(text))
		if err != nil {
			t.Skip("not TOML")
		}
		if err := d.set("7", "a", "b"); err != nil {
			return
		}
		if _, err := newDocument(d.text); err != nil {
			return // the caller refuses it
		}
		before := string(d.text)
		if err := d.set("7", "a", "b"); err != nil || string(d.text) != before {
			t.Errorf("%q becomes %q and then %q, %v", text, before, d.text, err)
		}
	})
}
