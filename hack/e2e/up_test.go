package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// startUp starts `xylem up`, with functions of both contracts, called like them.
func startUp(t *testing.T) *nodelab.Up {
	t.Helper()
	xylem := os.Getenv("XYLEM")
	if xylem == "" {
		xylem = "../../bin/xylem"
	}
	u, err := nodelab.StartUp(t.Context(), xylem)
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(u.Log())
		}
		must(t, u.Close())
	})
	for _, contract := range api.Contracts {
		image, err := nodelab.FunctionImage(t.Context(), "../..", string(contract), nil)
		must(t, err)
		ref, err := u.Push(t.Context(), string(contract)+":1", image)
		must(t, err)
		if _, err := u.Fn(t.Context(), "create", string(contract), "--image", ref, "--contract", string(contract)); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// say invokes the function "lambda", which has to answer with the text.
func say(ctx context.Context, u *nodelab.Up, text string) error {
	resp, err := u.User.Invoke(ctx, "lambda", strings.NewReader(fmt.Sprintf(`{"do":"echo","text":%q}`, text)), api.InvokeOptions{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
		return fmt.Errorf("%s: %s: %w", resp.Status, body, errors.Join(err, errors.New("no echo")))
	}
	return nil
}

// TestUp makes functions of images that nobody has converted, and invokes them as users do.
func TestUp(t *testing.T) {
	u := startUp(t)
	must(t, say(t.Context(), u, "first"))
	client := lambda.New(lambda.Options{BaseEndpoint: aws.String("http://" + u.API), Region: "eu-west-1",
		Credentials: credentials.NewStaticCredentialsProvider("any", "any", "")})
	out, err := client.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("lambda:1"), Payload: []byte(`{"do":"echo","text":"by AWS"}`)})
	if err != nil || out.FunctionError != nil || !bytes.Contains(out.Payload, []byte("by AWS")) {
		t.Errorf("%+v, %v", out, err)
	}
	page, err := http.Post("http://"+u.API+"/v1/functions/http/web/headers?a=b", "text/plain", strings.NewReader("hello"))
	must(t, err)
	text, err := io.ReadAll(page.Body)
	must(t, errors.Join(err, page.Body.Close()))
	for _, want := range []string{`"url":"/headers?a=b"`, `"body":"hello"`, "X-Forwarded-For"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the program was not asked with %s, but %s", want, text)
		}
	}
	if list, err := u.Fn(t.Context(), "list"); err != nil || !strings.Contains(list, "lambda") || !strings.Contains(list, "http") {
		t.Errorf("%s, %v", list, err)
	}
	for _, args := range [][]string{{"invoke", "none"}, {"create", "x", "--image", u.Registry + "/none:1"}, {"logs", "none"}} {
		if out, err := u.Fn(t.Context(), args...); err == nil {
			t.Errorf("%v: no error but %s", args, out)
		}
	}
}

// TestUpIsKilled kills everything at once, with asynchronous invocations accepted. All of them are run afterwards, and what the dead one left
// is cleaned up.
func TestUpIsKilled(t *testing.T) {
	u := startUp(t)
	must(t, say(t.Context(), u, "before"))
	const events = 40
	for range events {
		_, err := u.Fn(t.Context(), "invoke", "lambda", "--async", "-d", `{"do":"echo","text":"later"}`)
		must(t, err)
	}
	must(t, u.Kill())
	must(t, u.Start(t.Context()))
	must(t, say(t.Context(), u, "after"))
	eventually(t, "nothing is left to run", func() bool { return metric(t, u, "xylem_scheduler_events") == 0 })
	if failed := metric(t, u, `xylem_scheduler_invocations_total{result="function_error"}`); failed != 0 {
		t.Errorf("%v invocations failed", failed)
	}
}

// TestInstanceIsKilled kills the program of an instance: the next invocation gets another one.
func TestInstanceIsKilled(t *testing.T) {
	u := startUp(t)
	must(t, say(t.Context(), u, "hello"))
	for range 2 {
		list, err := u.User.Instances(t.Context())
		must(t, err)
		if len(list) == 0 { // the last invocation died with it
			must(t, say(t.Context(), u, "hello"))
			continue
		}
		must(t, killProgram(list[0].ID))
		// One that reaches the program before anybody knows that it is dead is told so.
		if err := say(t.Context(), u, "hello"); err != nil && !strings.Contains(err.Error(), "the instance died during the invocation") {
			t.Error(err)
		}
	}
	must(t, say(t.Context(), u, "hello again"))
}

// killProgram kills a process in the cgroup of an instance.
func killProgram(instance string) error {
	cgroups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return err
	}
	for _, path := range cgroups {
		text, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(text, []byte(instance)) {
			continue // it has ended, or is another's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return err
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			return err
		}
		return p.Kill()
	}
	return fmt.Errorf("no process of instance %s", instance)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// metric returns a metric of the scheduler, 0 if it is not there.
func metric(t *testing.T, u *nodelab.Up, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + u.Metrics + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			must(t, err)
			return value
		}
	}
	return 0
}
