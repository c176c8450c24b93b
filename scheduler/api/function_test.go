package api_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

func spec(change func(*api.FunctionSpec)) api.FunctionSpec {
	s := api.FunctionSpec{Name: "resize", Image: "r.example/team/resize:1"}
	change(&s)
	return s
}

func TestFunctionSpecDefaults(t *testing.T) {
	got, err := spec(func(*api.FunctionSpec) {}).Complete()
	if err != nil {
		t.Fatal(err)
	}
	if got.Namespace != "default" || got.Contract != api.ContractHTTP || got.Concurrency != 80 || got.Timeout.Duration != 30*time.Second || got.Max != 1000 {
		t.Errorf("defaults: %+v", got)
	}
	got, err = spec(func(s *api.FunctionSpec) { s.Contract = api.ContractLambda; s.Min = 2000; s.Memory = 1 << 30 }).Complete()
	if err != nil || got.Concurrency != 1 || got.Max != 2000 || got.Memory != 1<<30 {
		t.Errorf("%+v, %v", got, err)
	}
	again, err := got.Complete()
	if err != nil || again.Max != got.Max || again.Concurrency != got.Concurrency {
		t.Errorf("completing twice changes it: %+v, %v", again, err)
	}
}

func TestFunctionSpecRefused(t *testing.T) {
	for want, change := range map[string]func(*api.FunctionSpec){
		"function name":         func(s *api.FunctionSpec) { s.Name = "a/b" },
		"function name \"\"":    func(s *api.FunctionSpec) { s.Name = "" },
		"namespace":             func(s *api.FunctionSpec) { s.Namespace = "-" },
		"image":                 func(s *api.FunctionSpec) { s.Image = "r.example/a b" },
		"contract":              func(s *api.FunctionSpec) { s.Contract = "cgi" },
		"is set by the agent":   func(s *api.FunctionSpec) { s.Env = map[string]string{"PORT": "1"} },
		"no name of a variable": func(s *api.FunctionSpec) { s.Env = map[string]string{"A=B": "1"} },
		"NUL byte":              func(s *api.FunctionSpec) { s.Command = []string{"a\x00"} },
		"env has":               func(s *api.FunctionSpec) { s.Env = map[string]string{"A": strings.Repeat("x", 64<<10)} },
		"workdir":               func(s *api.FunctionSpec) { s.WorkDir = "app" },
		"warm":                  func(s *api.FunctionSpec) { s.Contract, s.Warm = api.ContractLambda, "/warm" },
		"memory":                func(s *api.FunctionSpec) { s.Memory = 1 },
		"cpu":                   func(s *api.FunctionSpec) { s.CPU = -1 },
		"one invocation":        func(s *api.FunctionSpec) { s.Contract, s.Concurrency = api.ContractLambda, 2 },
		"concurrency":           func(s *api.FunctionSpec) { s.Concurrency = -1 },
		"min is 3 and max 2":    func(s *api.FunctionSpec) { s.Min, s.Max = 3, 2 },
		"timeout is":            func(s *api.FunctionSpec) { s.Timeout.Duration = time.Hour },
		"keep is":               func(s *api.FunctionSpec) { s.Keep.Duration = -1 },
		"retries":               func(s *api.FunctionSpec) { s.Retries = 11 },
		"deadLetter":            func(s *api.FunctionSpec) { s.DeadLetter = "?" },
	} {
		if _, err := spec(change).Complete(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	}
}

func TestFunctionRef(t *testing.T) {
	const d = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for image, want := range map[string]string{
		"r.example:5000/a/b:1": "r.example:5000/a/b@" + d, "r.example:5000/a": "r.example:5000/a@" + d,
		"a/b@sha256:ffff": "a/b@" + d, "a/b:tag@sha256:ffff": "a/b@" + d, "busybox": "busybox@" + d,
	} {
		if got := (api.Function{FunctionSpec: api.FunctionSpec{Image: image}, Digest: d}).Ref(); got != want {
			t.Errorf("Ref of %s is %s, want %s", image, got, want)
		}
	}
}

func TestFunctionSpecIsJSON(t *testing.T) {
	var s api.FunctionSpec
	if err := json.Unmarshal([]byte(`{"name":"a","image":"b","timeout":"1m30s"}`), &s); err != nil || s.Timeout.Duration != 90*time.Second {
		t.Fatalf("%+v, %v", s, err)
	}
	if text, err := json.Marshal(s); err != nil || string(text) != `{"name":"a","image":"b","timeout":"1m30s"}` {
		t.Errorf("%s, %v", text, err)
	}
}
