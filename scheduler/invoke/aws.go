package invoke

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
)

// Headers of AWS Lambda's Invoke call.
const (
	awsInvocationType = "X-Amz-Invocation-Type"
	awsLogType        = "X-Amz-Log-Type"
	awsClientContext  = "X-Amz-Client-Context"
	awsFunctionError  = "X-Amz-Function-Error"
	awsLogResult      = "X-Amz-Log-Result"
	awsVersion        = "X-Amz-Executed-Version"
	awsRequestID      = "X-Amzn-Requestid"
	awsTrace          = "X-Amzn-Trace-Id"
)

// errJSON says that a payload is no JSON.
var errJSON = errors.New("the payload is no JSON")

// invokeAWS is AWS Lambda's Invoke, version 2015-03-31.
func (g *Gateway) invokeAWS(w http.ResponseWriter, r *http.Request) {
	id := newRequestID()
	w.Header().Set(awsRequestID, id)
	inv, err := g.fromAWS(r, id)
	if err != nil {
		Refuse(w, err)
		return
	}
	switch r.Header.Get(awsInvocationType) {
	case "", "RequestResponse":
		g.synchronous(w, r, inv)
	case "Event":
		if err := g.events.Accept(r.Context(), inv); err != nil {
			Refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	case "DryRun":
		w.Header().Set(awsVersion, strconv.Itoa(inv.Function.Version))
		w.WriteHeader(http.StatusNoContent)
	default:
		Refuse(w, fmt.Errorf("%w: %s is %.40q, want RequestResponse, Event or DryRun", errRequest, awsInvocationType, r.Header.Get(awsInvocationType)))
	}
}

// fromAWS reads a request.
func (g *Gateway) fromAWS(r *http.Request, id string) (inv Invocation, err error) {
	name, qualifier, err := parseName(r.PathValue("name"))
	if err != nil {
		return inv, err
	}
	if q := r.URL.Query().Get("Qualifier"); q != "" {
		if qualifier != "" && qualifier != q {
			return inv, fmt.Errorf("%w: Qualifier is %.40q, but %.40q in the name", errRequest, q, qualifier)
		}
		qualifier = q
	}
	fn, err := g.functions.Lookup(namespaceOf(r), name, qualifier)
	if err != nil {
		return inv, err
	}
	limit := int64(api.MaxPayload)
	if r.Header.Get(awsInvocationType) == "Event" {
		limit = MaxEventPayload
	}
	text, err := payload(r, limit)
	if err != nil {
		return inv, err
	}
	if len(text) == 0 {
		text = []byte("{}")
	}
	if !json.Valid(text) {
		return inv, fmt.Errorf("%w, as AWS Lambda wants it", errJSON)
	}
	h := http.Header{"Content-Type": {"application/json"}}
	pass(h, api.HeaderClientContext, r.Header.Get(awsClientContext))
	pass(h, api.HeaderTrace, r.Header.Get(awsTrace))
	if r.Header.Get(awsLogType) == "Tail" {
		h.Set(api.HeaderTail, "1")
	}
	colour := colourOf(r.Header)
	if colour == "" {
		colour = colourIn(r.Header.Get(awsClientContext))
	}
	pass(h, api.HeaderColor, colour)
	return Invocation{ID: id, Function: fn, Colour: colour, Header: h, Payload: text, Whole: true}, nil
}

func pass(h http.Header, name, value string) {
	if value != "" {
		h.Set(name, value)
	}
}

// parseName reads what AWS takes for the name of a function: name, name:qualifier, account:function:name, or an ARN with or without
// a qualifier.
func parseName(text string) (name, qualifier string, err error) {
	part := strings.Split(text, ":")
	if at := strings.Index(text, "function:"); at >= 0 && (at == 0 || text[at-1] == ':') {
		part = strings.Split(text[at+len("function:"):], ":")
	}
	if len(part) > 2 || part[0] == "" {
		return "", "", fmt.Errorf("%w: function %.200q, want a name, name:qualifier or an ARN", errRequest, text)
	}
	if len(part) == 2 {
		qualifier = part[1]
	}
	return part[0], qualifier, nil
}

// synchronous invokes and passes the answer on, in AWS's form: a function that failed is a 200 with a header that says so.
func (g *Gateway) synchronous(w http.ResponseWriter, r *http.Request, inv Invocation) {
	a, err := g.dispatcher.Invoke(r.Context(), inv)
	if failed, text := functionError(inv, err); failed {
		w.Header().Set(awsFunctionError, "Unhandled")
		w.Header().Set(awsVersion, strconv.Itoa(inv.Function.Version))
		respond(w, http.StatusOK, text)
		return
	}
	if err != nil {
		Refuse(w, err)
		return
	}
	defer a.Body.Close()
	text, err := answerOf(a)
	if err != nil {
		Refuse(w, err)
		return
	}
	h := w.Header()
	h.Set(awsVersion, strconv.Itoa(inv.Function.Version))
	h.Set("Content-Type", "application/json")
	pass(h, awsFunctionError, a.FunctionError())
	pass(h, awsFunctionError, a.Trailer.Get(api.HeaderFunctionError))
	pass(h, awsLogResult, a.Trailer.Get(api.HeaderLogTail))
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.Write(text) //nolint:errcheck // the client is gone
}

// answerOf reads a whole answer.
func answerOf(a *Answer) ([]byte, error) {
	limit := int64(api.MaxPayload)
	if a.whole != nil && int64(len(a.whole)) <= limit {
		return a.whole, nil
	}
	var text []byte
	var err error
	if n, e := strconv.ParseInt(a.Header.Get("Content-Length"), 10, 64); e == nil && n >= 0 && n <= limit {
		text = make([]byte, n)
		_, err = io.ReadFull(a.Body, text)
		if err == nil {
			_, err = io.Copy(io.Discard, a.Body) // to its trailers
		}
	} else {
		text, err = io.ReadAll(io.LimitReader(a.Body, limit+1))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: answer: %w", ErrInterrupted, err)
	case int64(len(text)) > limit:
		return nil, fmt.Errorf("%w: the answer has more than %d bytes", errLarge, limit)
	}
	return text, nil
}

// awsError is the body of an answer of a function that failed.
type awsError struct {
	Message string `json:"errorMessage"`
	Type    string `json:"errorType"`
}

// functionError says whether AWS would call a failure one of the function's, and what it would say.
func functionError(inv Invocation, err error) (bool, awsError) {
	f, ok := errors.AsType[*fleet.Failure](err)
	if !ok {
		return false, awsError{}
	}
	switch f.Kind {
	case api.FailureTimeout:
		return true, awsError{fmt.Sprintf("%s Task timed out after %.2f seconds", inv.ID, inv.Function.Timeout.Seconds()), "Sandbox.Timedout"}
	case api.FailureExited:
		return true, awsError{f.Error(), "Runtime.ExitError"}
	case api.FailureProtocol:
		return true, awsError{f.Error(), "Runtime.InvalidResponse"}
	case api.FailureInit:
		return true, awsError{f.Error(), "Runtime.InitError"}
	}
	return false, awsError{}
}
