package functions

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/scheduler/api"
)

func unixMilli(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

// left says what of a world's instances is still there: containers, snapshots, cgroups.
func (w *world) left() (found []string) {
	w.t.Helper()
	for _, args := range [][]string{{"containers", "ls", "-q"}, {"tasks", "ls", "-q"}} {
		out, err := w.daemon.Ctr(w.t.Context(), append([]string{"-n", w.config.Namespace}, args...)...).Output()
		must(w.t, err)
		found = append(found, strings.Fields(string(out))...)
	}
	out, err := w.daemon.Ctr(w.t.Context(), "-n", w.config.Namespace, "snapshots", "ls").Output()
	must(w.t, err)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "Active") || strings.Contains(line, "View") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	for _, controller := range []string{"memory", "freezer", "pids"} {
		dirs, _ := os.ReadDir("/sys/fs/cgroup/" + controller + "/" + w.config.Namespace)
		for _, d := range dirs {
			if d.IsDir() {
				found = append(found, controller+"/"+d.Name())
			}
		}
	}
	return found
}

// TestNothingIsLeft when instances end, and when the executor does while they live.
func TestNothingIsLeft(t *testing.T) {
	w := start(t, nil)
	lambda, http := w.function(api.ContractLambda, nil), w.function(api.ContractHTTP, nil)
	w.instance("a", lambda)
	w.instance("b", http)
	w.ask("a", `{"do":"echo"}`)
	w.headers("b", "")
	w.delete("a")
	w.delete("b")
	if left := w.left(); len(left) > 0 {
		t.Errorf("after the instances' end: %q", left)
	}
	w.instance("c", lambda)
	w.instance("d", http)
	w.stop()
	if left := w.left(); len(left) > 0 {
		t.Errorf("after the executor's end: %q", left)
	}
}

// TestUnusedImages are removed, and pulled again when they are needed.
func TestUnusedImages(t *testing.T) {
	w := start(t, func(cfg *executor.Config) { cfg.KeepImages = 3 * time.Second })
	fn := w.function(api.ContractLambda, nil)
	images := func() int {
		out, err := w.daemon.Ctr(t.Context(), "-n", w.config.Namespace, "images", "ls", "-q").Output()
		must(t, err)
		return len(strings.Fields(string(out)))
	}
	w.instance("a", fn)
	eventually(t, "the image is removed", func() bool { return images() == 0 })
	w.ask("a", `{"do":"echo"}`) // its files are still there
	w.instance("b", fn)
	w.ask("b", `{"do":"echo"}`)
}

// TestContainerdRestarts while instances run: they go on, and can be ended.
func TestContainerdRestarts(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, nil)
	w.instance("a", fn)
	w.restartContainerd()
	w.ask("a", `{"do":"echo"}`)
	f := w.fails(api.FailureExited, "a", `{"do":"exit"}`)
	if !strings.Contains(f.Error, "exit code 7") {
		t.Errorf("%+v", f)
	}
	w.gone("a")
	w.instance("b", fn)
	w.ask("b", `{"do":"echo"}`)
}

// TestDeleteWhileStarting ends an instance that is not ready, and its start says so.
func TestDeleteWhileStarting(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, func(fn *api.Function) { fn.Env = map[string]string{"INIT": "never"} })
	started := make(chan answer, 1)
	go func() { started <- w.startInstance("a", fn) }()
	eventually(t, "it starts", func() bool { return w.state("a") == api.InstanceStarting })
	w.fails(api.FailureNoInstance, "a", "{}")
	w.delete("a")
	if a := <-started; a.failure == nil || a.failure.Kind != api.FailureNoInstance {
		t.Errorf("%d %+v", a.status, a.failure)
	}
}

// TestManyAtOnce starts, invokes and ends instances side by side.
func TestManyAtOnce(t *testing.T) {
	w := start(t, nil)
	fn := w.function(api.ContractLambda, nil)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			id := fmt.Sprint("i", i)
			if a := w.startInstance(id, fn); a.failure != nil {
				t.Errorf("%s: %+v", id, a.failure)
				return
			}
			for range 20 {
				if a := w.invoke(id, fmt.Sprintf(`{"do":"echo","text":%q}`, id)); a.failure != nil || !strings.Contains(string(a.body), `"`+id+`"`) {
					t.Errorf("%s: %+v %s", id, a.failure, a.body)
				}
			}
			w.delete(id)
		})
	}
	wg.Wait()
	if left := w.left(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
