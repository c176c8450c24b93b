package xylem_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/xylem-project/xylem"

// rule says what a package may import of this module. A pattern is a package, or a package and all below it ("agent/...").
type rule struct {
	pkg    string
	may    []string
	reason string
}

// rules is the table of docs/architecture.md: the direction in which knowledge flows. A new package gets a row here.
var rules = []rule{
	{"", nil, "holds this test only"},
	{"blockfmt", nil, "the vocabulary: everything else is explained with its words, so it knows none of theirs"},
	{"blockfmt/metadata", []string{"blockfmt"}, "a file format, without mounts or networks, so that converters, mounts and the agent can all use it"},
	{"blockfmt/convert", []string{"blockfmt", "blockfmt/metadata"}, "runs in CI systems without an agent"},
	{"blockfmt/blocktest", []string{"blockfmt"}, "judges every Source and Store, so it may know none of them"},
	{"tree", nil, "a pure state machine"},
	{"tree/stream", []string{"tree", "blockfmt"}, "carries blocks along a tree, whoever runs it"},
	{"tree/stream/streamtest", []string{"tree/stream"}, "judges every network that carries edges, so it may know none of them"},
	{"tree/member", []string{"tree/stream", "blockfmt"}, "keeps an agent in a tree, whoever told it where: agents and simulations run it"},
	{"tree/treesim", []string{"tree", "tree/stream", "tree/member", "agent/fetch", "blockfmt"}, "runs the real code on virtual time"},
	{"agent", []string{"agent/...", "blockfmt/...", "fuse/...", "tree/...", "registryproxy", "scheduler/api"}, "wires its parts together; the scheduler is another daemon, known by its API only"},
	{"agent/cache", []string{"blockfmt"}, "a decorator of Source: policies compose because none knows another"},
	{"agent/fetch", []string{"blockfmt"}, "decorators of Source"},
	{"agent/registry", []string{"blockfmt"}, "a Source"},
	{"agent/registry/registrytest", nil, "a real registry for tests of everything that reads one, so it may know none of them"},
	{"agent/snapshotter", []string{"blockfmt"}, "containerd's side; what it needs of the agent is an interface of its own"},
	{"agent/executor", []string{"blockfmt", "scheduler/api"}, "runs instances for whoever asks"},
	{"agent/objects", []string{"blockfmt", "scheduler/api"}, "keeps objects for whoever asks"},
	{"registryproxy", []string{"blockfmt"}, "an http.Handler over a Source"},
	{"fuse", []string{"blockfmt", "blockfmt/metadata"}, "serves bytes; whose they are is not its business"},
	{"fuse/erofs", []string{"blockfmt", "blockfmt/metadata", "fuse"}, "mounts metadata over files"},
	{"fuse/fusetest", []string{"blockfmt"}, "real readers and mounts for tests of everything that serves files"},
	{"scheduler", []string{"scheduler/...", "tree"}, "control plane; agents are known by the API only"},
	{"scheduler/api", []string{"scheduler/api/lane"}, "what agent and scheduler share"},
	{"scheduler/api/lane", nil, "a transport, whatever travels"},
	{"scheduler/function", []string{"scheduler/api", "scheduler/store"}, "what functions there are, whoever runs them"},
	{"scheduler/access", []string{"scheduler/api", "scheduler/store"}, "who may do what, whatever it is"},
	{"scheduler/fleet", []string{"scheduler/api/..."}, "agents as they take work, whatever the work is for"},
	{"scheduler/invoke", []string{"scheduler/api/...", "scheduler/store", "scheduler/access", "scheduler/function", "scheduler/fleet", "scheduler/placement"}, "the way of an invocation; trees are not its business"},
	{"scheduler/placement", []string{"scheduler/api", "tree"}, "pure policy"},
	{"scheduler/placement/dag", nil, "colours and runs a graph of invocations, whoever invokes"},
	{"scheduler/trigger", nil, "pure policy"},
	{"scheduler/trigger/app", []string{"scheduler/trigger"}, "reads what users write; evaluators do not care where it comes from"},
	{"scheduler/store", nil, "keys and values, whatever the scheduler keeps in them"},
	{"scheduler/store/etcd", []string{"scheduler/store"}, "a Store"},
	{"scheduler/store/storetest", []string{"scheduler/store"}, "judges every Store, so it may know none of them"},
	{"scheduler/ui", []string{"scheduler/api", "tree"}, "looks at the API"},
	{"cmd/xylem", []string{"..."}, "flags -> Config -> Run"},
	{"cmd/xylem/up", []string{"agent", "scheduler", "scheduler/api"}, "runs daemons as their users do"},
	{"cmd/xylem/setup", []string{"agent"}, "edits files of containerd; of the agent it needs the durable write only"},
	{"hack", []string{"..."}, "tools of the developers, never shipped"},
}

// Test files may also use the conformance suites, and build real input with the formats.
var testsMay = []string{"blockfmt/...", "fuse/fusetest", "tree/stream/streamtest", "scheduler/store/storetest", "agent/registry/registrytest"}

// Words that say what a package is made of, not what it does.
var badNames = []string{"util", "utils", "common", "types", "helper", "helpers", "manager", "base", "misc"}

type goPackage struct {
	ImportPath, Name                   string
	Imports, TestImports, XTestImports []string
}

func TestImportDirection(t *testing.T) {
	for _, p := range listPackages(t) {
		r := ruleOf(p)
		if r == nil {
			t.Errorf("package %s is in no row of the table in imports_test.go", local(p.ImportPath))
			continue
		}
		checkImports(t, p, *r, p.Imports, nil)
		checkImports(t, p, *r, slices.Concat(p.TestImports, p.XTestImports), testsMay)
	}
}

func TestPackageNames(t *testing.T) {
	for _, p := range listPackages(t) {
		for part := range strings.SplitSeq(local(p.ImportPath), "/") {
			if slices.Contains(badNames, part) || slices.Contains(badNames, p.Name) {
				t.Errorf("package %s: %q says what a package is made of, not what it does", local(p.ImportPath), part)
			}
		}
	}
}

// What ships carries no test code: only packages for tests, by their name, may import testing and its like.
func TestNoTestCodeShips(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, i := range p.Imports {
			if isTestLibrary(i) && !strings.HasSuffix(p.Name, "test") {
				t.Errorf("package %s imports %s outside its test files", local(p.ImportPath), i)
			}
		}
	}
}

// The table itself: no rule lets agent and scheduler reach each other.
func TestAgentAndSchedulerShareOnlyTheAPI(t *testing.T) {
	for _, r := range rules {
		if !within(r.pkg, "agent") && !within(r.pkg, "scheduler") {
			continue
		}
		for _, pkg := range []string{"agent", "agent/cache", "scheduler", "scheduler/placement"} {
			if strings.Split(r.pkg, "/")[0] != strings.Split(pkg, "/")[0] && matchAny(r.may, pkg) {
				t.Errorf("the table lets %s import %s", r.pkg, pkg)
			}
		}
	}
}

func checkImports(t *testing.T, p goPackage, r rule, imports, alsoMay []string) {
	t.Helper()
	self := local(p.ImportPath)
	for _, i := range imports {
		if i != module && !strings.HasPrefix(i, module+"/") {
			continue
		}
		if pkg := local(i); pkg != self && !matchAny(r.may, pkg) && !matchAny(alsoMay, pkg) {
			t.Errorf("%s imports %s, may import %v only: %s", self, pkg, r.may, r.reason)
		}
	}
}

// ruleOf returns the row of a package; everything below hack shares one.
func ruleOf(p goPackage) *rule {
	for i, r := range rules {
		if pkg := local(p.ImportPath); pkg == r.pkg || r.pkg == "hack" && within(pkg, "hack") {
			return &rules[i]
		}
	}
	return nil
}

func matchAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		below, all := strings.CutSuffix(p, "...")
		return p == pkg || all && (below == "" || within(pkg, path.Clean(below)))
	})
}

func within(pkg, parent string) bool { return pkg == parent || strings.HasPrefix(pkg, parent+"/") }

func local(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func isTestLibrary(importPath string) bool {
	return slices.ContainsFunc([]string{"testing", "go.uber.org/goleak", "pgregory.net/rapid", "net/http/httptest"},
		func(lib string) bool { return within(importPath, lib) })
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Imports,TestImports,XTestImports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 2 {
		t.Fatalf("go list found %d packages", len(packages))
	}
	return packages
}
