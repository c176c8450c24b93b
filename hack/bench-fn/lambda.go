package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	// lambdaCalls is how many invocations a round has, after some that warm up.
	lambdaCalls  = 5000
	lambdaWarmup = 500
	lambdaText   = `{"do":"echo","text":"hello"}`
)

// lambdaRows are what measureLambda measures.
var lambdaRows = []figures.Row{
	figures.AtMost("lambda_p50_seconds", "warm invocation, contract lambda, at the node: median", "≤ 150 µs", 150e-6),
	figures.AtMost("lambda_p99_seconds", "the same: 99th percentile", "≤ 500 µs", 500e-6),
	figures.Shown("lambda_bare_p50_seconds", "the same program without container or executor: median"),
	figures.Shown("lambda_bare_p99_seconds", "the same: 99th percentile"),
}

// measureLambda measures warm invocations of a function of the contract "lambda", from the call of the executor's handler to its
// return, and in turn with them those of the same program without a container by the smallest server that it can talk to.
func measureLambda(ctx context.Context, run *figures.Run) (err error) {
	n, err := startFunctionNode(ctx, run.Xylem)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	if _, err := n.start(ctx, "warm"); err != nil {
		return err
	}
	bare, err := startBare(ctx, n.program)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	var p50, p99, bare50, bare99 []float64
	for range run.Rounds {
		a, b, err := percentiles(ctx, n.invoke)
		if err != nil {
			return err
		}
		c, d, err := percentiles(ctx, bare.invoke)
		if err != nil {
			return err
		}
		p50, p99, bare50, bare99 = append(p50, a), append(p99, b), append(bare50, c), append(bare99, d)
	}
	run.Add(figures.Summary("lambda_p50_seconds", "s", p50), figures.Summary("lambda_p99_seconds", "s", p99),
		figures.Summary("lambda_bare_p50_seconds", "s", bare50), figures.Summary("lambda_bare_p99_seconds", "s", bare99))
	return nil
}

// percentiles calls do again and again, one call after the other, and returns the median and the 99th percentile in seconds.
func percentiles(ctx context.Context, do func(context.Context) error) (p50, p99 float64, err error) {
	var times []time.Duration
	for i := range lambdaWarmup + lambdaCalls {
		begin := time.Now()
		if err := do(ctx); err != nil {
			return 0, 0, err
		}
		if i >= lambdaWarmup {
			times = append(times, time.Since(begin))
		}
	}
	slices.Sort(times)
	return times[len(times)/2].Seconds(), times[len(times)*99/100].Seconds(), nil
}

// invoke invokes the instance "warm".
func (n *functionNode) invoke(ctx context.Context) error {
	w, err := n.call(ctx, http.MethodPost, api.WorkInstances+"/warm/"+api.WorkInvoke, []byte(lambdaText), api.HeaderInvocation, "00000000-0000-0000-0000-000000000000")
	if err != nil {
		return err
	}
	if w.body.Len() == 0 || w.header.Get(api.HeaderFailure) != "" || w.header.Get(api.HeaderFunctionError) != "" {
		return fmt.Errorf("invocation failed: %v %s", w.header, w.body.Bytes())
	}
	return nil
}

// bare is a program of the contract "lambda" without a container.
type bare struct {
	server *http.Server
	cmd    *exec.Cmd
	next   chan string
	answer chan struct{}
}

func startBare(ctx context.Context, program string) (*bare, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &bare{next: make(chan string), answer: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", b.serveNext)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", b.serveResponse)
	b.server = &http.Server{Handler: mux}
	go b.server.Serve(ln) // until close
	b.cmd = exec.CommandContext(ctx, program)
	b.cmd.Env = []string{"AWS_LAMBDA_RUNTIME_API=" + ln.Addr().String()}
	if err := b.cmd.Start(); err != nil {
		return nil, errors.Join(err, b.server.Close())
	}
	return b, nil
}

func (b *bare) serveNext(w http.ResponseWriter, r *http.Request) {
	select {
	case payload := <-b.next:
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", "1")
		w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(time.Now().Add(time.Minute).UnixMilli(), 10))
		io.WriteString(w, payload)
	case <-r.Context().Done():
	}
}

func (b *bare) serveResponse(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	b.answer <- struct{}{}
	w.WriteHeader(http.StatusAccepted)
}

// bareTimeout bounds an invocation of a program that may have ended.
const bareTimeout = 10 * time.Second

func (b *bare) invoke(context.Context) error {
	late := time.NewTimer(bareTimeout)
	defer late.Stop()
	select {
	case b.next <- lambdaText:
	case <-late.C:
		return errors.New("the program without a container does not ask for an invocation")
	}
	select {
	case <-b.answer:
		return nil
	case <-late.C:
		return errors.New("the program without a container does not answer")
	}
}

func (b *bare) close() error {
	err := b.cmd.Process.Kill()
	_ = b.cmd.Wait() // killed
	return errors.Join(err, b.server.Close())
}
