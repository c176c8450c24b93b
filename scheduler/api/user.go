package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// User is a client of the API of functions. It is safe for concurrent use.
type User struct {
	url       string
	namespace string
	key       string
	http      *http.Client
}

// UserConfig of a User. URL is needed.
type UserConfig struct {
	URL       string // of a scheduler, as "http://127.0.0.1:9760" on its machine, or with https
	Namespace string // default "default"
	Key       string // access key, as ID:SECRET. Not needed on the scheduler's machine
	CA        []byte // PEM, for https. Default: the system's
	// Dial connects to the scheduler. Default: as net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// NewUser returns a client that has connected to nobody yet.
func NewUser(cfg UserConfig) (*User, error) {
	at, err := url.Parse(cfg.URL)
	if err != nil || at.Scheme != "http" && at.Scheme != "https" || at.Host == "" {
		return nil, fmt.Errorf("scheduler %q is not like http://127.0.0.1:9760", cfg.URL)
	}
	if cfg.Namespace == "" {
		cfg.Namespace = DefaultNamespace
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if cfg.Dial != nil {
		transport.DialContext = cfg.Dial
	}
	if len(cfg.CA) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("CA: no PEM certificate in it")
		}
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	}
	return &User{url: strings.TrimSuffix(cfg.URL, "/"), namespace: cfg.Namespace, key: cfg.Key, http: &http.Client{Transport: transport}}, nil
}

// Close closes connections that are not in use.
func (u *User) Close() { u.http.CloseIdleConnections() }

// do sends a request and returns the answer, or the error that it says. The path is escaped already.
func (u *User) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.url+path, body)
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set(HeaderNamespace, u.namespace)
	if u.key != "" {
		req.Header.Set("Authorization", "Bearer "+u.key)
	}
	resp, err := u.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.Header.Get(HeaderRefused) == "" {
		return resp, nil
	}
	defer resp.Body.Close()
	var f Failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, MaxRequest)).Decode(&f); err != nil || f.Error == "" {
		f.Error = resp.Header.Get(HeaderRefused)
	}
	return nil, &callError{resp.StatusCode, f}
}

func (u *User) call(ctx context.Context, method, path string, request, answer any) error {
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	resp, err := u.do(ctx, method, path, http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(text))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return &callError{resp.StatusCode, Failure{Error: "this is no scheduler's API: " + resp.Status}}
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer)
}

func functionPath(name string, more ...string) string {
	path := PathFunctions + "/" + url.PathEscape(name)
	for _, m := range more {
		path += "/" + url.PathEscape(m)
	}
	return path
}

// Create makes a function.
func (u *User) Create(ctx context.Context, spec FunctionSpec) (f Function, err error) {
	return f, u.call(ctx, http.MethodPost, PathFunctions, spec, &f)
}

// Update makes a new version of a function.
func (u *User) Update(ctx context.Context, spec FunctionSpec) (f Function, err error) {
	return f, u.call(ctx, http.MethodPut, functionPath(spec.Name), spec, &f)
}

// List returns the newest versions of the namespace's functions.
func (u *User) List(ctx context.Context) (list []Function, err error) {
	return list, u.call(ctx, http.MethodGet, PathFunctions, nil, &list)
}

// Describe returns a function.
func (u *User) Describe(ctx context.Context, name string) (info FunctionInfo, err error) {
	return info, u.call(ctx, http.MethodGet, functionPath(name), nil, &info)
}

// Delete removes a function with all its versions.
func (u *User) Delete(ctx context.Context, name string) error {
	var none struct{}
	return u.call(ctx, http.MethodDelete, functionPath(name), nil, &none)
}

// SetAlias makes an alias name a version.
func (u *User) SetAlias(ctx context.Context, name, alias string, version int) error {
	var none struct{}
	return u.call(ctx, http.MethodPut, functionPath(name, "aliases", alias), AliasRequest{version}, &none)
}

// DeleteAlias removes an alias.
func (u *User) DeleteAlias(ctx context.Context, name, alias string) error {
	var none struct{}
	return u.call(ctx, http.MethodDelete, functionPath(name, "aliases", alias), nil, &none)
}

// Instances lists the instances that the scheduler invokes.
func (u *User) Instances(ctx context.Context) (list []InstanceInfo, err error) {
	return list, u.call(ctx, http.MethodGet, PathFunctionInstances, nil, &list)
}

// Nodes lists the nodes that take work from the scheduler.
func (u *User) Nodes(ctx context.Context) (list []NodeInfo, err error) {
	return list, u.call(ctx, http.MethodGet, PathFunctionNodes, nil, &list)
}

// Logs returns the newest lines that a function printed, oldest first. version 0 means all.
func (u *User) Logs(ctx context.Context, name string, version, limit int) (lines []LogLine, err error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if version != 0 {
		query.Set("version", strconv.Itoa(version))
	}
	resp, err := u.do(ctx, http.MethodGet, functionPath(name, "logs")+"?"+query.Encode(), nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	for from := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)); ; {
		var l LogLine
		if err := from.Decode(&l); errors.Is(err, io.EOF) {
			return lines, nil
		} else if err != nil {
			return lines, err
		}
		lines = append(lines, l)
	}
}

// InvokeOptions of an invocation.
type InvokeOptions struct {
	Qualifier string // version or alias. Default: the newest
	Colour    string
	Async     bool // the answer is that it was accepted
	Header    http.Header
}

// Invoke invokes a function. The answer is the function's: its caller closes the body. HeaderUserError in it says that the function failed.
func (u *User) Invoke(ctx context.Context, name string, payload io.Reader, o InvokeOptions) (*http.Response, error) {
	h := o.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	query := url.Values{}
	if o.Qualifier != "" {
		query.Set("qualifier", o.Qualifier)
	}
	if o.Async {
		query.Set("async", "true")
	}
	if o.Colour != "" {
		h.Set(HeaderUserColor, o.Colour)
	}
	return u.do(ctx, http.MethodPost, functionPath(name, "invocations")+"?"+query.Encode(), h, payload)
}
