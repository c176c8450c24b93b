package invoke

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/xylem-project/xylem/scheduler/access"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/fleet"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/store"
)

// Gateway is the API of users: it makes functions and invokes them, as AWS Lambda's API does (aws.go) and in a way of its own (native.go).
// It is an http.Handler.
type Gateway struct {
	functions  *function.Registry
	dispatcher *Dispatcher
	events     *Events
	log        *slog.Logger
	mux        *http.ServeMux
}

// NewGateway returns the API over what does the work.
func NewGateway(f *function.Registry, d *Dispatcher, e *Events, log *slog.Logger) *Gateway {
	g := &Gateway{functions: f, dispatcher: d, events: e, log: log, mux: http.NewServeMux()}
	g.mux.HandleFunc("POST /2015-03-31/functions/{name}/invocations", g.invokeAWS)
	g.mux.HandleFunc("POST /v1/functions/{name}/invocations", g.invokeNative)
	g.mux.HandleFunc("/v1/functions/{name}/web/{path...}", g.web)
	g.mux.HandleFunc("GET /v1/functions/{name}/logs", g.logs)
	g.routeFunctions()
	return g
}

// Paths are those of the API, as http.ServeMux wants them.
var Paths = []string{api.PathFunctions, api.PathFunctions + "/", api.PathFunctionInstances, api.PathFunctionNodes, "/2015-03-31/functions/"}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

func namespaceOf(r *http.Request) string {
	if ns := r.Header.Get(api.HeaderNamespace); ns != "" {
		return ns
	}
	return api.DefaultNamespace
}

func newRequestID() string { return strings.ToLower(rand.Text()) }

// A problem is what went wrong, as clients are told.
type problem struct {
	status  int
	kind    string // as AWS calls it
	message string
	retry   time.Duration // 0: not said
}

// errRequest says that a request cannot be as it is.
var errRequest = errors.New("invalid request")

// errLarge says that a payload is larger than allowed.
var errLarge = errors.New("payload too large")

// problemOf says what an error means for a client.
func problemOf(err error) problem {
	p := problem{status: http.StatusInternalServerError, kind: "ServiceException", message: strings.ReplaceAll(err.Error(), "\n", "; ")}
	set := func(status int, kind string, retry time.Duration) problem {
		p.status, p.kind, p.retry = status, kind, retry
		return p
	}
	var backoff *BackoffError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, function.ErrNotFound):
		return set(http.StatusNotFound, "ResourceNotFoundException", 0)
	case errors.Is(err, function.ErrExists), errors.Is(err, function.ErrBusy):
		return set(http.StatusConflict, "ResourceConflictException", 0)
	case errors.Is(err, access.ErrUnknown):
		return set(http.StatusUnauthorized, "UnrecognizedClientException", 0)
	case errors.Is(err, access.ErrDenied):
		return set(http.StatusForbidden, "AccessDeniedException", 0)
	case errors.Is(err, errLarge), errors.As(err, &tooLarge), fleet.IsKind(err, api.FailureTooLarge):
		return set(http.StatusRequestEntityTooLarge, "RequestTooLargeException", 0)
	case errors.Is(err, errJSON):
		return set(http.StatusBadRequest, "InvalidRequestContentException", 0)
	case errors.Is(err, errRequest), errors.Is(err, function.ErrInvalid):
		return set(http.StatusBadRequest, "InvalidParameterValueException", 0)
	case errors.Is(err, ErrOverload):
		return set(http.StatusTooManyRequests, "TooManyRequestsException", time.Second)
	case errors.Is(err, fleet.ErrNoRoom):
		return set(http.StatusTooManyRequests, "TooManyRequestsException", 5*time.Second)
	case errors.As(err, &backoff):
		return set(http.StatusBadGateway, kindOfStart(err), time.Until(backoff.Until))
	case fleet.IsKind(err, api.FailureTimeout):
		return set(http.StatusGatewayTimeout, "ServiceException", 0)
	case errors.Is(err, ErrInterrupted), fleet.IsKind(err, api.FailureProtocol):
		return set(http.StatusBadGateway, "ServiceException", 0)
	case errors.Is(err, ErrClosed), errors.Is(err, fleet.ErrNoNodes), fleet.IsKind(err, api.FailureNoInstance), fleet.IsKind(err, api.FailureBusy), errors.Is(err, fleet.ErrLost), errors.Is(err, function.ErrNotReady), errors.Is(err, store.ErrUnavailable):
		return set(http.StatusServiceUnavailable, "ServiceUnavailableException", time.Second)
	}
	return p
}

// kindOfStart names why instances do not start.
func kindOfStart(err error) string {
	switch {
	case fleet.IsKind(err, api.FailureImage):
		return "InvalidImageException"
	case fleet.IsKind(err, api.FailureInit):
		return "InvalidRuntimeException"
	}
	return "ServiceException"
}

// Refuse tells a client what went wrong, in the form that AWS's clients understand.
func Refuse(w http.ResponseWriter, err error) {
	p := problemOf(err)
	if p.retry > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(p.retry/time.Second)+1))
	}
	w.Header().Set("X-Amzn-Errortype", p.kind)
	w.Header().Set(api.HeaderRefused, p.kind)
	fault := "User"
	if p.status >= 500 {
		fault = "Service"
	}
	respond(w, p.status, map[string]string{"Type": fault, "Message": p.message, "error": p.message})
}

func respond(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer) //nolint:errcheck // the client is gone
}

// payload reads a request's body of at most limit bytes, never nil.
func payload(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errLarge, r.ContentLength, limit)
	}
	if r.ContentLength == 0 {
		return []byte{}, nil
	}
	body := http.MaxBytesReader(nil, r.Body, limit)
	if r.ContentLength < 0 {
		return io.ReadAll(body)
	}
	text := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(body, text); err != nil {
		return nil, fmt.Errorf("%w: body: %w", errRequest, err)
	}
	return text, nil
}

// colourOf returns the colour that headers name: ours, or the partition key of a CloudEvent in binary form.
func colourOf(h http.Header) string {
	colour := h.Get(api.HeaderUserColor)
	if colour == "" {
		colour = h.Get("Ce-Partitionkey")
	}
	return colour[:min(len(colour), maxColour)]
}

// clientContext is the part of AWS's client context that we look at.
type clientContext struct {
	Custom map[string]any `json:"custom"`
}

// colourIn returns the colour in a client context: custom's "xylem-color". It is "" if the context is not what it should be: that
// is the function's business.
func colourIn(encoded string) string {
	if encoded == "" {
		return ""
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	var c clientContext
	if err != nil || json.Unmarshal(text, &c) != nil {
		return ""
	}
	colour, _ := c.Custom["xylem-color"].(string)
	return colour[:min(len(colour), maxColour)]
}

// logs answers with the newest lines of a function, of all nodes, as JSON, one a line.
func (g *Gateway) logs(w http.ResponseWriter, r *http.Request) {
	q, err := logQueryOf(r)
	if err == nil {
		_, err = g.functions.Describe(namespaceOf(r), r.PathValue("name"))
	}
	if err != nil {
		Refuse(w, err)
		return
	}
	lines, err := g.collect(r.Context(), namespaceOf(r), r.PathValue("name"), q)
	if err != nil {
		Refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	to := json.NewEncoder(w)
	for _, l := range lines {
		if to.Encode(l) != nil {
			return
		}
	}
}

// logTimeout bounds the wait for the nodes' logs.
const logTimeout = 10 * time.Second

func (g *Gateway) collect(ctx context.Context, namespace, name string, q logQuery) ([]api.LogLine, error) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	return newest(ctx, g.dispatcher.fleet.Nodes(), namespace, name, q)
}
