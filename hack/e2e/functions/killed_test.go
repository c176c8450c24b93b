package functions

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/scheduler/api"
)

// childVariable makes the test's binary an executor that is going to be killed; it has a childConfig.
const childVariable = "FUNCTIONS_TEST_CHILD"

type childConfig struct {
	State, Containerd, Namespace string
	Instances                    map[string]api.Function
}

func TestMain(m *testing.M) {
	if config := os.Getenv(childVariable); config != "" {
		if err := runChild(config); err != nil {
			fmt.Println(err)
		}
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// runChild starts instances, waits until they are paused, says so, and waits to be killed.
func runChild(config string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	e, err := executor.New(executor.Config{
		State: c.State, Containerd: c.Containerd, Namespace: c.Namespace, Snapshotter: "overlayfs", Images: noImages{}, Memory: 1 << 30, CPU: 10_000,
		PauseAfter: time.Millisecond,
		Resolver:   docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))}),
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	for tick := time.NewTicker(10 * time.Millisecond); len(c.Instances) > 0; {
		for id, fn := range c.Instances {
			body, err := json.Marshal(api.StartRequest{Function: fn})
			if err != nil {
				return err
			}
			w := httptest.NewRecorder()
			e.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPut, api.WorkInstances+"/"+id, bytes.NewReader(body)))
			if strings.Contains(w.Body.String(), string(api.InstancePaused)) {
				delete(c.Instances, id)
			}
		}
		<-tick.C
	}
	fmt.Println("paused")
	return <-ended
}

// TestFormerRun: what an executor that was killed left, frozen, is removed by the next one.
func TestFormerRun(t *testing.T) {
	w := start(t, nil)
	lambda, http := w.function(api.ContractLambda, nil), w.function(api.ContractHTTP, nil)
	w.stop()
	config, err := json.Marshal(childConfig{w.config.State, w.config.Containerd, w.config.Namespace, map[string]api.Function{"a": lambda, "b": http}})
	must(t, err)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childVariable+"="+string(config))
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, child.Process.Kill())
	_ = child.Wait() // killed
	if err != nil || line != "paused\n" {
		t.Fatalf("the executor that was to be killed said %q, %v", line, err)
	}
	if len(w.left()) == 0 || len(mountsBelow(t, w.config.State)) == 0 {
		t.Error("the executor that was killed left nothing")
	}
	w.run()
	if left := w.left(); len(left) > 0 {
		t.Errorf("the next executor left %q", left)
	}
	w.instance("a", lambda)
	w.ask("a", `{"do":"echo"}`)
	w.stop()
}
