package functions

import (
	"encoding/json"
	"testing"

	"github.com/xylem-project/xylem/scheduler/api"
)

// said is what the lambda program answers.
type said struct {
	Text     string            `json:"text"`
	ID       string            `json:"id"`
	ARN      string            `json:"arn"`
	Trace    string            `json:"trace"`
	Deadline int64             `json:"deadline"`
	Client   map[string]string `json:"client"`
	Env      []string          `json:"env"`
	Count    int               `json:"count"`
}

// ask invokes the lambda program, which has to answer.
func (w *world) ask(id, payload string, headers ...string) (s said) {
	w.t.Helper()
	a := w.invoke(id, payload, headers...)
	if a.failure != nil || a.header.Get(api.HeaderFunctionError) != "" {
		w.t.Fatalf("%s: %+v %v %s", payload, a.failure, a.header, a.body)
	}
	must(w.t, json.Unmarshal(a.body, &s))
	return s
}

func TestInvoke(t *testing.T) {
	w := start(t, nil)
	in := w.instance("a", w.function(api.ContractLambda, nil))
	if in.State != api.InstanceReady || in.Ready <= 0 {
		t.Errorf("started: %+v", in)
	}
	for n := range 3 {
		if s := w.ask("a", `{"do":"echo","text":"hi"}`); s.Text != "hi" || s.Count != n+1 {
			t.Errorf("invocation %d: %+v", n, s)
		}
	}
}
