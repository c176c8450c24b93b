package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// failure is why the platform, not the function, has no answer.
type failure struct {
	kind  string // of the api.Failure constants
	err   error
	log   string
	retry time.Duration // after which another try makes sense; 0: unknown
}

func fail(kind, format string, args ...any) *failure {
	return &failure{kind: kind, err: fmt.Errorf(format, args...)}
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// asFailure gives an error a kind, unless it has one.
func asFailure(err error, kind string) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{kind: kind, err: err}
}

// statuses of answers are for people who read logs; programs read the kind.
var statuses = map[string]int{
	api.FailureNoInstance: http.StatusNotFound,
	api.FailureBusy:       http.StatusTooManyRequests,
	api.FailureTimeout:    http.StatusGatewayTimeout,
	api.FailureNoRoom:     http.StatusServiceUnavailable,
	api.FailureTooLarge:   http.StatusRequestEntityTooLarge,
}

// write answers a call with the failure.
func (f *failure) write(w http.ResponseWriter) {
	status := statuses[f.kind]
	if status == 0 {
		status = http.StatusBadGateway
	}
	h := w.Header()
	h.Set(api.HeaderFailure, f.kind)
	h.Set("Content-Type", "application/json")
	if f.retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(f.retry.Seconds()))))
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.WorkFailure{Kind: f.kind, Error: f.Error(), Log: f.log}) // the caller has gone: nobody to tell
}
