package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

var endToEndRows = []figures.Row{
	figures.AtMost("e2e_p50_seconds", "warm invocation through the scheduler's HTTP API, contract lambda: p50", "≤ 0.5 ms", 0.0005),
	figures.AtMost("e2e_p99_seconds", "the same: p99", "≤ 3 ms", 0.003),
	figures.AtLeast("invocations_per_second", "invocations per second, 32 clients, contract http, everything on two cores", "≥ 10,000", 10_000),
	figures.Shown("lambda_invocations_per_second", "the same, contract lambda"),
}

const (
	inTurn  = 5000 // invocations, one after the other
	clients = 32
	atOnce  = 40_000 // invocations of all clients together
)

// endToEnd measures invocations through everything that `xylem up` runs.
func (b *bench) endToEnd(ctx context.Context) (err error) {
	u, err := nodelab.StartUp(ctx, b.Xylem)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.Close()) }()
	for _, contract := range []api.Contract{api.ContractLambda, api.ContractHTTP} {
		if err := create(ctx, u, contract); err != nil {
			return err
		}
	}
	samples := map[string][]float64{}
	for _, fn := range []string{"http", "lambda"} { // so that all instances are there
		if _, _, err := invoke(u.API, fn, clients, atOnce/4); err != nil {
			return err
		}
	}
	for round := range b.Rounds {
		times, _, err := invoke(u.API, "lambda", 1, inTurn)
		if err != nil {
			return err
		}
		samples["e2e_p50_seconds"] = append(samples["e2e_p50_seconds"], times[len(times)/2].Seconds())
		samples["e2e_p99_seconds"] = append(samples["e2e_p99_seconds"], times[len(times)*99/100].Seconds())
		for figure, fn := range map[string]string{"invocations_per_second": "http", "lambda_invocations_per_second": "lambda"} {
			_, rate, err := invoke(u.API, fn, clients, atOnce)
			if err != nil {
				return err
			}
			samples[figure] = append(samples[figure], rate)
		}
		fmt.Printf("   round %d: p50 %v, p99 %v, %.0f/s http, %.0f/s lambda\n", round+1, times[len(times)/2], times[len(times)*99/100],
			samples["invocations_per_second"][round], samples["lambda_invocations_per_second"][round])
	}
	for name, list := range samples {
		unit := "s"
		if strings.HasSuffix(name, "per_second") {
			unit = "1/s"
		}
		b.Add(figures.Summary(name, unit, list))
	}
	return nil
}

// create makes a function of a program of hack/functions, called like its contract.
func create(ctx context.Context, u *nodelab.Up, contract api.Contract) error {
	image, err := nodelab.FunctionImage(ctx, ".", string(contract), nil)
	if err != nil {
		return err
	}
	ref, err := u.Push(ctx, string(contract)+":1", image)
	if err != nil {
		return err
	}
	_, err = u.User.Create(ctx, api.FunctionSpec{Name: string(contract), Image: ref, Contract: contract, Max: clients})
	return err
}

// invoke invokes a function n times by a number of clients, each of which waits for its answer, and returns how long each took, in order of
// length, and how many were done in a second.
func invoke(address, fn string, clients, n int) (times []time.Duration, rate float64, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	start := time.Now()
	for range clients {
		all.Go(func() {
			list, e := client(address, fn, n/clients)
			mu.Lock()
			defer mu.Unlock()
			times, err = append(times, list...), errors.Join(err, e)
		})
	}
	all.Wait()
	rate = float64(len(times)) / time.Since(start).Seconds()
	slices.Sort(times)
	return times, rate, err
}

// client sends requests on one connection. It does as little as it can, because it runs on the cores that it measures.
func client(address, fn string, n int) (times []time.Duration, err error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	from := bufio.NewReader(conn)
	const payload = `{"do":"echo","text":"hello"}`
	request := fmt.Appendf(nil, "POST /2015-03-31/functions/%s/invocations HTTP/1.1\r\nHost: xylem\r\nContent-Length: %d\r\n\r\n%s", fn, len(payload), payload)
	for range n {
		begin := time.Now()
		if _, err := conn.Write(request); err != nil {
			return times, err
		}
		resp, err := http.ReadResponse(from, nil)
		if err != nil {
			return times, err
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("X-Amz-Function-Error") != "" {
			return times, fmt.Errorf("%s: %s: %w", resp.Status, text, err)
		}
		times = append(times, time.Since(begin))
	}
	return times, nil
}
