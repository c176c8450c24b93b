package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/executor"
	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// functionNode is a node with an agent and, in this process, an executor, whose handler is called without a connection between.
type functionNode struct {
	lab     *nodelab.Lab
	node    *nodelab.Node
	handler http.Handler
	fn      api.Function
	program string // the function's program, as a file
	state   string // directory of the executor
	stop    context.CancelFunc
	done    chan error
}

// functionNamespace of containerd is the executor's. runc knows containers by namespace and name, on the whole machine, so each run has its own.
func functionNamespace() string { return fmt.Sprintf("bench-fn-%d", os.Getpid()) }

// startFunctionNode starts one with the block image of a function of the contract "lambda".
func startFunctionNode(ctx context.Context, xylem string) (_ *functionNode, err error) {
	n := &functionNode{}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.lab, err = nodelab.Start(ctx, nodelab.Config{Xylem: xylem, Log: os.Stdout}); err != nil {
		return nil, err
	}
	if n.node, err = n.lab.Node(ctx, nodelab.NodeConfig{Xylem: true}); err != nil {
		return nil, err
	}
	if err := n.push(ctx); err != nil {
		return nil, err
	}
	return n, n.execute()
}

// push builds the program, puts its image and block image into the registry, and makes a function of it.
func (n *functionNode) push(ctx context.Context) error {
	n.program = n.lab.Path("fn")
	if err := nodelab.BuildFunction(ctx, ".", "lambda", n.program); err != nil {
		return err
	}
	binary, err := os.ReadFile(n.program)
	if err != nil {
		return err
	}
	image, err := containerdtest.Image([]string{"/bin/fn"}, map[string][]byte{"bin/fn": binary})
	if err != nil {
		return err
	}
	ref, err := n.lab.Push(ctx, "fn:1", image)
	if err != nil {
		return err
	}
	if _, err := n.lab.Convert(ctx, ref, "--push"); err != nil {
		return err
	}
	d, err := image.Digest()
	if err != nil {
		return err
	}
	spec, err := api.FunctionSpec{Name: "bench", Image: ref, Contract: api.ContractLambda}.Complete()
	n.fn = api.Function{FunctionSpec: spec, Version: 1, Digest: digest.Digest(d.String())}
	return err
}

// execute runs the executor until close.
func (n *functionNode) execute() error {
	n.state = n.lab.Path("executor")
	e, err := executor.New(executor.Config{
		State: n.state, Containerd: n.node.Containerd.Address, Namespace: functionNamespace(), Images: noImages{}, Memory: 4 << 30, CPU: 100_000, PauseAfter: -1,
		Resolver: docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))}),
	})
	if err != nil {
		return err
	}
	n.handler = e.Handler()
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.done = cancel, make(chan error, 1)
	go func() { n.done <- e.Run(ctx) }()
	return nil
}

func (n *functionNode) close() error {
	var errs []error
	if n.stop != nil {
		n.stop()
		errs = append(errs, <-n.done, containerdtest.RemoveNamespace(functionNamespace()))
	}
	if n.node != nil {
		errs = append(errs, n.node.Close())
	}
	if n.lab != nil {
		errs = append(errs, n.lab.Close())
	}
	return errors.Join(errs...)
}

// start starts an instance and returns how long that took. An executor that has just begun is not ready for a moment.
func (n *functionNode) start(ctx context.Context, id string) (time.Duration, error) {
	body, err := json.Marshal(api.StartRequest{Function: n.fn})
	if err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		begin := time.Now()
		w, err := n.call(ctx, http.MethodPut, api.WorkInstances+"/"+id, body)
		took := time.Since(begin)
		if err != nil {
			return 0, err
		}
		switch kind := w.header.Get(api.HeaderFailure); {
		case kind == "":
			return took, nil
		case kind != api.FailureNoRoom || time.Now().After(deadline):
			return 0, fmt.Errorf("start %s: %s", id, w.body.Bytes())
		}
	}
}

func (n *functionNode) remove(ctx context.Context, id string) error {
	_, err := n.call(ctx, http.MethodDelete, api.WorkInstances+"/"+id, nil)
	return err
}

// call calls the executor's handler as a server would, without the connection.
func (n *functionNode) call(ctx context.Context, method, path string, body []byte, header ...string) (*recorder, error) {
	req, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := &recorder{header: http.Header{}}
	n.handler.ServeHTTP(w, req)
	return w, nil
}

// recorder is an http.ResponseWriter that keeps the answer.
type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header         { return w.header }
func (w *recorder) WriteHeader(int)             {}
func (w *recorder) Write(p []byte) (int, error) { return w.body.Write(p) }

// noImages answers for an agent of another process.
type noImages struct{}

func (noImages) Held() []digest.Digest { return nil }
func (noImages) Resolve(context.Context, string) (api.ImageAnswer, error) {
	return api.ImageAnswer{}, errors.New("no images")
}
