package invoke

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/placement"
)

// publishTimeout bounds the making of a version: its image is converted.
const publishTimeout = 10 * time.Minute

// maxSpec bounds what a user says of a function, in bytes.
const maxSpec = 1 << 20

// routeFunctions adds the calls that make and change functions.
func (g *Gateway) routeFunctions() {
	handle := func(pattern string, status int, do func(*http.Request) (any, error)) {
		g.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := do(r)
			if err != nil {
				Refuse(w, err)
				return
			}
			respond(w, status, answer)
		})
	}
	handle("GET "+api.PathFunctions, http.StatusOK, func(r *http.Request) (any, error) {
		return g.functions.List(namespaceOf(r))
	})
	handle("GET /v1/functions/{name}", http.StatusOK, func(r *http.Request) (any, error) {
		return g.functions.Describe(namespaceOf(r), r.PathValue("name"))
	})
	handle("POST "+api.PathFunctions, http.StatusCreated, func(r *http.Request) (any, error) {
		return publish(r, g.functions.Create, "")
	})
	handle("PUT /v1/functions/{name}", http.StatusOK, func(r *http.Request) (any, error) {
		return publish(r, g.functions.Update, r.PathValue("name"))
	})
	handle("DELETE /v1/functions/{name}", http.StatusOK, func(r *http.Request) (any, error) {
		return struct{}{}, g.functions.Delete(r.Context(), namespaceOf(r), r.PathValue("name"))
	})
	handle("PUT /v1/functions/{name}/aliases/{alias}", http.StatusOK, func(r *http.Request) (any, error) {
		request, err := decode[api.AliasRequest](r)
		if err != nil {
			return nil, err
		}
		return struct{}{}, g.functions.SetAlias(r.Context(), namespaceOf(r), r.PathValue("name"), r.PathValue("alias"), request.Version)
	})
	handle("DELETE /v1/functions/{name}/aliases/{alias}", http.StatusOK, func(r *http.Request) (any, error) {
		return struct{}{}, g.functions.DeleteAlias(r.Context(), namespaceOf(r), r.PathValue("name"), r.PathValue("alias"))
	})
	handle("GET "+api.PathFunctionNodes, http.StatusOK, func(*http.Request) (any, error) { return g.dispatcher.fleet.Infos(), nil })
	handle("GET "+api.PathFunctionInstances, http.StatusOK, func(r *http.Request) (any, error) {
		return g.dispatcher.Instances(namespaceOf(r)), nil
	})
}

// publish makes a version of the function that a request describes.
func publish(r *http.Request, do func(context.Context, api.FunctionSpec) (api.Function, error), name string) (any, error) {
	spec, err := decode[api.FunctionSpec](r)
	if err != nil {
		return nil, err
	}
	if spec.Namespace == "" {
		spec.Namespace = namespaceOf(r)
	}
	if spec.Namespace != namespaceOf(r) {
		return nil, fmt.Errorf("%w: namespace %.80q in the body, %.80q in the request", errRequest, spec.Namespace, namespaceOf(r))
	}
	if spec.Name == "" {
		spec.Name = name
	}
	if name != "" && spec.Name != name {
		return nil, fmt.Errorf("%w: function %.80q in the body, %.80q in the path", errRequest, spec.Name, name)
	}
	if spec.Placement != "" {
		if _, err := placement.New(spec.Placement, placement.Config{}); err != nil {
			return nil, fmt.Errorf("%w: %w", errRequest, err)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
	defer cancel()
	return do(ctx, spec)
}

// decode reads a request's JSON, which may not have fields that do not exist: a user's typing error is not to be a default.
func decode[T any](r *http.Request) (value T, err error) {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxSpec))
	d.DisallowUnknownFields()
	if err = d.Decode(&value); err == nil {
		var rest json.RawMessage
		if err = d.Decode(&rest); errors.Is(err, io.EOF) {
			return value, nil
		}
		err = errors.New("more than one JSON value")
	}
	return value, fmt.Errorf("%w: body: %w", errRequest, err)
}
