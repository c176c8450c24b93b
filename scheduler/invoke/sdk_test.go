package invoke_test

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// AWS's own client finds in our answers what it looks for.
func TestAWSClient(t *testing.T) {
	w := newWorld(t, store.NewMemory())
	w.node(func(rw http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		rw.Header().Set("Trailer", api.HeaderLogTail)
		if strings.Contains(string(text), "fail") {
			rw.Header().Set(api.HeaderFunctionError, "Unhandled")
			text = []byte(`{"errorMessage":"no","errorType":"E"}`)
		}
		if strings.Contains(string(text), "late") {
			fail(rw, api.FailureTimeout, "the deadline passed")
			return
		}
		rw.Write(text) //nolint:errcheck // the client sees it
		rw.Header().Set(api.HeaderLogTail, base64.StdEncoding.EncodeToString([]byte("printed\n")))
	})
	w.create(api.FunctionSpec{Name: "f", Contract: api.ContractLambda})
	c := lambda.New(lambda.Options{
		BaseEndpoint: aws.String(w.api.URL), Region: "eu-west-1", Credentials: credentials.NewStaticCredentialsProvider("any", "any", ""), RetryMaxAttempts: 1})
	invoke := func(in lambda.InvokeInput) (*lambda.InvokeOutput, error) { return c.Invoke(t.Context(), &in) }

	out, err := invoke(lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"a":1}`), LogType: types.LogTypeTail})
	if err != nil || string(out.Payload) != `{"a":1}` || out.StatusCode != 200 || *out.ExecutedVersion != "1" || out.FunctionError != nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if log, err := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult)); err != nil || string(log) != "printed\n" {
		t.Errorf("log %q, %v", log, err)
	}
	out, err = invoke(lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`"fail"`)})
	if err != nil || aws.ToString(out.FunctionError) != "Unhandled" || !strings.Contains(string(out.Payload), "errorMessage") {
		t.Errorf("a function that fails: %+v, %v", out, err)
	}
	out, err = invoke(lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`"late"`)})
	if err != nil || aws.ToString(out.FunctionError) != "Unhandled" || !strings.Contains(string(out.Payload), "Task timed out after 30.00 seconds") {
		t.Errorf("a function that is late: %+v, %v", out, err)
	}
	out, err = invoke(lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{}`)})
	if err != nil || out.StatusCode != 202 {
		t.Errorf("an event: %+v, %v", out, err)
	}
	out, err = invoke(lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeDryRun})
	if err != nil || out.StatusCode != 204 {
		t.Errorf("a dry run: %+v, %v", out, err)
	}
	var missing *types.ResourceNotFoundException
	if _, err := invoke(lambda.InvokeInput{FunctionName: aws.String("g")}); !errors.As(err, &missing) || !strings.Contains(missing.ErrorMessage(), "no such function") {
		t.Errorf("no function: %v", err)
	}
	var content *types.InvalidRequestContentException
	if _, err := invoke(lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{`)}); !errors.As(err, &content) {
		t.Errorf("no JSON: %v", err)
	}
	var large *types.RequestTooLargeException
	if _, err := invoke(lambda.InvokeInput{FunctionName: aws.String("f"), Payload: make([]byte, 7<<20)}); !errors.As(err, &large) {
		t.Errorf("too large: %v", err)
	}
}
