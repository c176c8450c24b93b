// Command lambda is a function of the contract "lambda" for tests and benchmarks, with the library that such functions use. Its
// payload says what it does.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// request is the payload.
type request struct {
	Do      string        `json:"do"`
	Text    string        `json:"text,omitempty"`
	Bytes   int           `json:"bytes,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// response says what the function saw.
type response struct {
	Text     string            `json:"text,omitempty"`
	ID       string            `json:"id,omitempty"`
	ARN      string            `json:"arn,omitempty"`
	Trace    string            `json:"trace,omitempty"`
	Deadline int64             `json:"deadline,omitempty"` // Unix milliseconds
	Client   map[string]string `json:"client,omitempty"`
	Env      []string          `json:"env,omitempty"`
	Count    int               `json:"count,omitempty"` // invocations of this process
}

func main() {
	switch os.Getenv("INIT") {
	case "exit":
		fmt.Println("no database")
		os.Exit(3)
	case "error":
		initError()
	case "never":
		fmt.Println("still thinking")
		time.Sleep(time.Hour)
	}
	if len(os.Args) > 1 && os.Args[1] == "bomb" {
		bomb()
		return
	}
	var options []lambda.Option
	if os.Getenv("SIGTERM") != "" {
		options = append(options, lambda.WithEnableSIGTERM(func() { fmt.Println("told to end") }))
	}
	count := 0
	lambda.StartWithOptions(func(ctx context.Context, r request) (response, error) {
		count++
		answer, err := handle(ctx, r)
		answer.Count = count
		return answer, err
	}, options...)
}

func initError() {
	resp, err := http.Post("http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+"/2018-06-01/runtime/init/error", "application/json",
		strings.NewReader(`{"errorType":"Config","errorMessage":"no database"}`))
	fmt.Println("reported", resp, err)
	os.Exit(1)
}

func handle(ctx context.Context, r request) (response, error) {
	switch r.Do {
	case "context":
		return describe(ctx), nil
	case "error":
		return response{}, errors.New(r.Text)
	case "panic":
		panic(r.Text)
	case "exit":
		fmt.Println("leaving")
		os.Exit(7)
	case "sleep":
		time.Sleep(r.Timeout)
	case "log":
		printLines(r.Bytes, r.Text)
	case "answer":
		return response{Text: strings.Repeat("x", r.Bytes)}, nil
	case "memory":
		return response{Text: fmt.Sprint(len(fill(r.Bytes)))}, nil
	case "bomb":
		return response{Text: fmt.Sprint(bomb())}, nil
	case "dial":
		conn, err := net.DialTimeout("tcp", r.Text, time.Second)
		if err != nil {
			return response{Text: err.Error()}, nil
		}
		conn.Close()
		return response{Text: "connected"}, nil
	case "user":
		return response{Text: fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())}, nil
	case "write":
		return response{Text: fmt.Sprint(os.WriteFile(r.Text, []byte("x"), 0o600))}, nil
	}
	return response{Text: r.Text}, nil
}

func describe(ctx context.Context) response {
	lc, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return response{
		ID: lc.AwsRequestID, ARN: lc.InvokedFunctionArn, Trace: os.Getenv("_X_AMZN_TRACE_ID"), Deadline: deadline.UnixMilli(),
		Client: lc.ClientContext.Custom, Env: os.Environ(),
	}
}

// printLines prints some bytes in lines, the last of which is last.
func printLines(bytes int, last string) {
	line := strings.Repeat("l", 99) + "\n"
	block := []byte(strings.Repeat(line, 655))
	for bytes > 0 {
		n := min(bytes, len(block))
		os.Stdout.Write(block[:n])
		bytes -= n
	}
	fmt.Println(last)
}

func fill(bytes int) []byte {
	b := make([]byte, bytes)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return b
}

// bomb starts copies of itself that do the same until that fails, and returns how many it could start.
func bomb() (n int) {
	for range 100_000 {
		if exec.Command("/proc/self/exe", "bomb").Start() != nil {
			break
		}
		n++
	}
	time.Sleep(100 * time.Millisecond)
	return n
}
