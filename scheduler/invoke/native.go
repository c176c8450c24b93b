package invoke

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/api/lane"
)

// hop are headers that belong to a connection, not to what it carries (RFC 9110, 7.6.1).
var hop = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// invokeNative invokes with any payload, which streams both ways; ?async=true: durably, later.
func (g *Gateway) invokeNative(w http.ResponseWriter, r *http.Request) {
	id := newRequestID()
	w.Header().Set(api.HeaderUserInvoke, id)
	inv, err := g.fromNative(r, id)
	if err != nil {
		Refuse(w, err)
		return
	}
	async := r.URL.Query().Get("async")
	switch async {
	case "", "false":
		g.stream(w, r, inv)
		return
	case "true":
	default:
		Refuse(w, fmt.Errorf("%w: async=%.20q, want true or false", errRequest, async))
		return
	}
	if inv.Payload == nil {
		inv.Payload, err = payload(r, MaxEventPayload)
	}
	if err == nil && len(inv.Payload) > MaxEventPayload {
		err = fmt.Errorf("%w: %d bytes, at most %d", errLarge, len(inv.Payload), MaxEventPayload)
	}
	if err == nil {
		err = g.events.Accept(r.Context(), inv)
	}
	if err != nil {
		Refuse(w, err)
		return
	}
	respond(w, http.StatusAccepted, map[string]string{"invocation": id})
}

// web passes a request with its method, path and query to the function, as if the function served it.
func (g *Gateway) web(w http.ResponseWriter, r *http.Request) {
	id := newRequestID()
	w.Header().Set(api.HeaderUserInvoke, id)
	inv, err := g.fromNative(r, id)
	if err == nil && inv.Function.Contract != api.ContractHTTP {
		err = fmt.Errorf("%w: function %s has the contract %s, which knows no paths: use its invocations", errRequest, inv.Function.Name, inv.Function.Contract)
	}
	if err != nil {
		Refuse(w, err)
		return
	}
	path := "/" + strings.TrimPrefix(r.URL.EscapedPath(), "/v1/functions/"+r.PathValue("name")+"/web/")
	if r.URL.RawQuery != "" {
		path += "?" + r.URL.RawQuery
	}
	inv.Header.Set(api.HeaderPath, path)
	inv.Header.Set(api.HeaderMethod, r.Method)
	g.stream(w, r, inv)
}

// fromNative reads all of a request but its payload.
func (g *Gateway) fromNative(r *http.Request, id string) (inv Invocation, err error) {
	qualifier := r.Header.Get(api.HeaderQualifier)
	if qualifier == "" && !strings.Contains(r.URL.Path, "/web/") {
		qualifier = r.URL.Query().Get("qualifier")
	}
	fn, err := g.functions.Lookup(namespaceOf(r), r.PathValue("name"), qualifier)
	if err != nil {
		return inv, err
	}
	h := r.Header.Clone()
	for _, name := range hop {
		h.Del(name)
	}
	for name := range h {
		if isOurHeader(name) {
			delete(h, name)
		}
	}
	h.Del("Authorization") // it is for us
	addForwarded(h, r)
	inv = Invocation{ID: id, Function: fn, Colour: colourOf(r.Header), Header: h, Body: r.Body}
	structured := inv.Colour == "" && isStructured(r.Header)
	if structured || r.ContentLength >= 0 && r.ContentLength <= lane.MaxRequest { // which then can be sent again
		if inv.Payload, err = payload(r, api.MaxPayload); err != nil {
			return inv, err
		}
	}
	if structured {
		inv.Colour = partitionKey(inv.Payload)
	}
	pass(h, api.HeaderColor, inv.Colour)
	return inv, nil
}

func isOurHeader(name string) bool {
	return strings.HasPrefix(name, "X-Xylem-") || strings.HasPrefix(name, "Xylem-")
}

// addForwarded says for whom a request is passed on (RFC 7239, and as Knative and Cloud Run do).
func addForwarded(h http.Header, r *http.Request) {
	host, proto := r.RemoteAddr, "http"
	if at := strings.LastIndex(host, ":"); at >= 0 {
		host = host[:at]
	}
	if r.TLS != nil {
		proto = "https"
	}
	h.Add("X-Forwarded-For", strings.Trim(host, "[]"))
	h.Set("X-Forwarded-Proto", proto)
	h.Set("X-Forwarded-Host", r.Host)
	if strings.Contains(host, ":") {
		host = `"` + host + `"`
	}
	h.Add("Forwarded", fmt.Sprintf("for=%s;host=%q;proto=%s", host, r.Host, proto))
}

// isStructured says whether a payload is a CloudEvent in structured form.
func isStructured(h http.Header) bool {
	mediaType, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && mediaType == "application/cloudevents+json"
}

// partitionKey returns the colour of a CloudEvent.
func partitionKey(text []byte) string {
	var event struct {
		PartitionKey string `json:"partitionkey"`
	}
	if json.Unmarshal(text, &event) != nil {
		return ""
	}
	return event.PartitionKey[:min(len(event.PartitionKey), maxColour)]
}

// stream invokes and passes the answer on as it comes. An answer that breaks off breaks the connection, so that nobody takes it for whole.
func (g *Gateway) stream(w http.ResponseWriter, r *http.Request, inv Invocation) {
	http.NewResponseController(w).EnableFullDuplex() //nolint:errcheck // HTTP/2 always is
	a, err := g.dispatcher.Invoke(r.Context(), inv)
	if err != nil {
		Refuse(w, err)
		return
	}
	defer a.Body.Close()
	h := w.Header()
	for name, values := range a.Header {
		if !isOurHeader(name) && name != "Trailer" && name != "Connection" {
			h[name] = values
		}
	}
	pass(h, api.HeaderUserError, a.FunctionError())
	h.Set(api.HeaderVersion, strconv.Itoa(inv.Function.Version))
	w.WriteHeader(a.Status)
	if err := copyFlushing(w, a.Body); err != nil || a.Trailer.Get(api.HeaderFailure) != "" || a.Trailer.Get(api.HeaderFunctionError) != "" {
		g.log.Debug("an answer broke off", "function", inv.Function.ID(), "invocation", inv.ID, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// copyFlushing copies, sending on what comes as soon as it comes.
func copyFlushing(w http.ResponseWriter, from io.Reader) error {
	flush := http.NewResponseController(w).Flush
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, e := w.Write(buffer[:n]); e != nil {
				return e
			}
			if err == nil {
				if e := flush(); e != nil {
					return e
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
