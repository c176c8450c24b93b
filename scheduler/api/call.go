package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// callTimeout bounds a call that is answered at once.
const callTimeout = 10 * time.Second

// newHTTP returns a client of one scheduler. It finds out within seconds that the scheduler is gone without a word.
func newHTTP(security *tls.Config) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: security, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 5 * time.Second, MaxResponseHeaderBytes: 64 << 10,
			HTTP2: &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second, WriteByteTimeout: 5 * time.Second},
		},
	}
}

// A callError is an answer that says that a call failed.
type callError struct {
	status int
	Failure
}

func (e *callError) Error() string {
	return fmt.Sprintf("the scheduler answered %d: %s", e.status, strings.ToValidUTF8(e.Failure.Error, "?"))
}

// Is makes an answer the error that callers of this package know.
func (e *callError) Is(target error) bool {
	return target == ErrUnknown && e.status == http.StatusNotFound
}

// statusOf returns the status of the answer that err is, 0 if there was none.
func statusOf(err error) int {
	if e, ok := errors.AsType[*callError](err); ok {
		return e.status
	}
	return 0
}

// call sends a request (unless nil) as JSON and decodes the answer into answer (unless nil).
func call(ctx context.Context, client *http.Client, method, url, session string, request, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := open(ctx, client, method, url, session, request)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body := io.LimitReader(r.Body, maxAnswer)
	if answer != nil {
		if err := json.NewDecoder(body).Decode(answer); err != nil {
			return fmt.Errorf("answer of %s: %w", url, err)
		}
	}
	_, err = io.Copy(io.Discard, body)
	return err
}

// open sends a request and returns the answer if it says that all is well.
func open(ctx context.Context, client *http.Client, method, url, session string, request any) (*http.Response, error) {
	var body io.Reader
	if request != nil {
		text, err := json.Marshal(request)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	if session != "" {
		r.Header.Set(SessionHeader, session)
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode/100 != 2 {
		defer answer.Body.Close()
		failed := &callError{status: answer.StatusCode}
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
		if json.Unmarshal(text, &failed.Failure) != nil {
			failed.Failure.Error = http.StatusText(answer.StatusCode)
		}
		return nil, failed
	}
	return answer, nil
}
