package registryproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/xylem-project/xylem/blockfmt"
)

// Codes of the distribution specification; codeUnavailable is docker-registry's, for which it has none.
const (
	codeBlobUnknown     = "BLOB_UNKNOWN"
	codeManifestUnknown = "MANIFEST_UNKNOWN"
	codeNameUnknown     = "NAME_UNKNOWN"
	codeNameInvalid     = "NAME_INVALID"
	codeDigestInvalid   = "DIGEST_INVALID"
	codeDenied          = "DENIED"
	codeUnauthorized    = "UNAUTHORIZED"
	codeUnsupported     = "UNSUPPORTED"
	codeTooMany         = "TOOMANYREQUESTS"
	codeRangeInvalid    = "RANGE_INVALID"
	codeUnavailable     = "UNAVAILABLE"
)

// answer is an error as the client gets it.
type answer struct {
	status int
	header http.Header // beside the usual ones
	errors []apiError
}

type apiError struct {
	Code    string          `json:"code"`
	Message string          `json:"message"`
	Detail  json.RawMessage `json:"detail"`
}

func (a *answer) Error() string {
	return fmt.Sprintf("status %d (%s: %s)", a.status, a.errors[0].Code, a.errors[0].Message)
}

func refuse(status int, code, format string, args ...any) *answer {
	return &answer{status: status, errors: []apiError{{Code: code, Message: fmt.Sprintf(format, args...)}}}
}

// answerFor makes an answer of an error.
func answerFor(err error) *answer {
	var a *answer
	var later RetryLater
	switch {
	case errors.As(err, &a):
		return a
	case errors.As(err, &later):
		a = refuse(http.StatusTooManyRequests, codeTooMany, "%v", err)
		a.header = http.Header{"Retry-After": {strconv.Itoa(max(1, later.RetryAfter()))}}
		return a
	case errors.Is(err, blockfmt.ErrTransient):
		return refuse(http.StatusServiceUnavailable, codeUnavailable, "%v", err)
	case errors.Is(err, blockfmt.ErrDenied):
		return refuse(http.StatusForbidden, codeDenied, "%v", err)
	case errors.Is(err, blockfmt.ErrNotFound):
		return refuse(http.StatusNotFound, codeBlobUnknown, "%v", err)
	case errors.Is(err, blockfmt.ErrCorrupt), errors.Is(err, blockfmt.ErrUnsupported):
		return refuse(http.StatusBadGateway, codeUnavailable, "%v", err)
	}
	return refuse(http.StatusInternalServerError, codeUnavailable, "%v", err)
}

// maxErrorBody bounds, in bytes, what is read of the body of a registry's error.
const maxErrorBody = 16 << 10

// passOn makes an answer of a registry's error: its status, its words, and what it asks for. It closes the body.
func passOn(resp *Response, req Request) *answer {
	defer resp.Body.Close()
	if resp.Status/100 != 4 {
		return refuse(http.StatusBadGateway, codeUnavailable, "%s answers %d", req.Host, resp.Status)
	}
	a := &answer{status: resp.Status, header: http.Header{}}
	for _, h := range []string{"WWW-Authenticate", "Retry-After"} {
		if v := resp.Header.Values(h); len(v) > 0 {
			a.header[http.CanonicalHeaderKey(h)] = v
		}
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // its words are welcome, not needed
	var body struct {
		Errors []apiError `json:"errors"`
	}
	if json.Unmarshal(text, &body) == nil && len(body.Errors) > 0 {
		a.errors = body.Errors
		return a
	}
	a.errors = []apiError{{Code: codeOf(resp.Status, req.Kind), Message: fmt.Sprintf("%s answers %d %s", req.Host, resp.Status, http.StatusText(resp.Status))}}
	return a
}

func codeOf(status int, kind string) string {
	switch {
	case status == http.StatusUnauthorized:
		return codeUnauthorized
	case status == http.StatusForbidden:
		return codeDenied
	case status == http.StatusNotFound && kind == "manifests":
		return codeManifestUnknown
	case status == http.StatusNotFound && kind == "blobs":
		return codeBlobUnknown
	case status == http.StatusNotFound:
		return codeNameUnknown
	}
	return codeUnsupported
}

func (a *answer) write(w http.ResponseWriter, method string) {
	body, err := json.Marshal(struct {
		Errors []apiError `json:"errors"`
	}{a.errors})
	if err != nil { // a detail that is no JSON cannot come out of a decoder
		body = []byte(`{"errors":[]}`)
	}
	h := w.Header()
	for _, stale := range []string{"Etag", "Docker-Content-Digest", "Accept-Ranges"} {
		h.Del(stale)
	}
	for k, v := range a.header {
		h[k] = v
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.status)
	if method != http.MethodHead {
		_, _ = w.Write(body) // the client may be gone
	}
}

// isLocal says that an error is a fault of this machine: the bytes may still come from upstream.
func isLocal(err error) bool {
	for _, kind := range []error{blockfmt.ErrNotFound, blockfmt.ErrCorrupt, blockfmt.ErrTransient, blockfmt.ErrDenied, blockfmt.ErrUnsupported} {
		if errors.Is(err, kind) {
			return false
		}
	}
	var a *answer
	return !errors.As(err, &a)
}
