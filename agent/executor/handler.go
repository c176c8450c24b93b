package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	// maxCall bounds the body of a call that is no invocation, in bytes.
	maxCall = 1 << 20
	// defaultLines and maxLines are how many lines of a log an answer has.
	defaultLines = 1000
	maxLines     = 10_000
)

// Handler serves the calls of scheduler/api/work.go. It trusts its caller: serve it on a connection to the scheduler only.
func (e *Executor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.WorkNode, func(w http.ResponseWriter, r *http.Request) {
		e.heard(r.URL.Query().Get("scheduler"))
		answer(w, e.Status())
	})
	mux.HandleFunc("POST "+api.WorkImages, e.serveImage)
	mux.HandleFunc("PUT "+api.WorkInstances+"/{instance}", e.serveStart)
	mux.HandleFunc("DELETE "+api.WorkInstances+"/{instance}", e.serveDelete)
	mux.HandleFunc("POST "+api.WorkInstances+"/{instance}/"+api.WorkInvoke, e.serveInvoke)
	mux.HandleFunc("GET "+api.WorkLogs+"/{namespace}/{name}", e.serveLogs)
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the caller has gone: nobody to tell
}

// read decodes a call's body, or answers that it cannot.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCall)).Decode(v); err != nil {
		http.Error(w, fmt.Sprintf("%s %s: %v", r.Method, r.URL.Path, err), http.StatusBadRequest)
		return false
	}
	return true
}

func (e *Executor) serveImage(w http.ResponseWriter, r *http.Request) {
	var req api.ImageRequest
	if !read(w, r, &req) {
		return
	}
	im, err := e.cfg.Images.Resolve(r.Context(), req.Image)
	if err != nil {
		asFailure(fmt.Errorf("image %s: %w", req.Image, err), api.FailureImage).write(w)
		return
	}
	answer(w, im)
}

// instanceID is what containerd, cgroups and host names all accept.
var instanceID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (e *Executor) serveStart(w http.ResponseWriter, r *http.Request) {
	var req api.StartRequest
	if !read(w, r, &req) {
		return
	}
	id := r.PathValue("instance")
	fn, err := complete(req.Function)
	if !instanceID.MatchString(id) {
		err = errors.Join(err, fmt.Errorf("instance %.80q: want at most 63 small letters, digits and '-'", id))
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	in, f := e.start(id, fn)
	if f != nil {
		f.write(w)
		return
	}
	select {
	case <-in.ready:
	case <-r.Context().Done(): // it starts all the same: the caller asks again, or deletes it
		return
	}
	if in.failure != nil {
		in.failure.write(w)
		return
	}
	status := in.status()
	if status.State == api.InstanceGone {
		fail(api.FailureNoInstance, "instance %s was ready and is gone", id).write(w)
		return
	}
	answer(w, status)
}

// complete checks a function that the scheduler has completed, and fills in what an older one does not know.
func complete(fn api.Function) (api.Function, error) {
	var err error
	if fn.FunctionSpec, err = fn.Complete(); err != nil {
		return fn, err
	}
	return fn, fn.Digest.Validate()
}

func (e *Executor) serveDelete(w http.ResponseWriter, r *http.Request) {
	if in := e.find(r.PathValue("instance")); in != nil {
		in.stop(errDeleted)
		select {
		case <-in.gone:
		case <-r.Context().Done():
			return
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func (e *Executor) serveInvoke(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("instance")
	in := e.find(id)
	if in == nil {
		fail(api.FailureNoInstance, "no instance %.80q here", id).write(w)
		return
	}
	inv, err := in.invocation(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f := in.acquire(inv.id)
	if f == nil {
		f = in.contract.invoke(w, r, inv)
		in.release()
	}
	if f != nil {
		f.write(w)
	}
}

// invocation reads the headers of one.
func (in *instance) invocation(r *http.Request) (inv invocation, err error) {
	h := r.Header
	inv = invocation{
		in: in, id: h.Get(api.HeaderInvocation), began: time.Now(), trace: h.Get(api.HeaderTrace), tail: h.Get(api.HeaderTail) == "1",
		method: h.Get(api.HeaderMethod),
	}
	if inv.id == "" || len(inv.id) > 128 {
		return inv, fmt.Errorf("%s is required, with at most 128 bytes", api.HeaderInvocation)
	}
	if inv.method == "" {
		inv.method = http.MethodPost
	}
	inv.deadline = inv.began.Add(in.fn.Timeout.Duration)
	if text := h.Get(api.HeaderDeadline); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return inv, fmt.Errorf("%s %.40q: want Unix milliseconds", api.HeaderDeadline, text)
		}
		inv.deadline = time.UnixMilli(ms)
	}
	if inv.clientContext, err = clientContext(h.Get(api.HeaderClientContext)); err != nil {
		return inv, err
	}
	if in.fn.Contract == api.ContractHTTP {
		inv.url, err = programURL(h.Get(api.HeaderPath))
	}
	return inv, err
}

func (e *Executor) serveLogs(w http.ResponseWriter, r *http.Request) {
	version, since, limit, err := logQuery(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	log := e.logs.find(r.PathValue("namespace") + "/" + r.PathValue("name"))
	if log == nil {
		return
	}
	enc := json.NewEncoder(w)
	for _, line := range log.query(version, since, limit) {
		if enc.Encode(line) != nil {
			return
		}
	}
}

// logQuery reads version (default all), since (RFC 3339, default the beginning) and limit.
func logQuery(r *http.Request) (version int, since time.Time, limit int, err error) {
	q := r.URL.Query()
	limit = defaultLines
	if text := q.Get("version"); text != "" {
		if version, err = strconv.Atoi(text); err != nil || version < 1 {
			return 0, since, 0, fmt.Errorf("version %.40q: want a number from 1", text)
		}
	}
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxLines {
			return 0, since, 0, fmt.Errorf("limit %.40q: want 1 to %d", text, maxLines)
		}
	}
	if text := q.Get("since"); text != "" {
		if since, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return 0, since, 0, fmt.Errorf("since %.40q: want a time as 2006-01-02T15:04:05Z", text)
		}
	}
	return version, since, limit, nil
}
