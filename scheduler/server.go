package scheduler

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/xylem-project/xylem/scheduler/access"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// server is the API for agents. Every agent's calls are counted, every body is bounded, and whoever is slow loses the connection.
type server struct {
	cfg       Config
	keeper    *keeper
	authority *authority
	tokens    *tokens
	metrics   *metrics

	mu     sync.Mutex
	limits map[string]*rate.Limiter // by peer
}

const (
	// headerTimeout bounds handshakes and headers, bodyTimeout whole requests, eventTimeout what an agent takes to read an event.
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	eventTimeout  = 10 * time.Second
	// answerTimeout bounds the wait for the store.
	answerTimeout = 5 * time.Second
	maxJoins      = 32 // at the same time
)

func newServer(cfg Config, k *keeper, a *authority, t *tokens) *server {
	return &server{cfg: cfg, keeper: k, authority: a, tokens: t, metrics: k.metrics, limits: map[string]*rate.Limiter{}}
}

// http returns the HTTP server. It asks for a certificate, but looks at it call by call, because an answer says better than a
// broken handshake what is wrong with it.
func (s *server) http() *http.Server {
	return &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.authority.certificate, ClientAuth: tls.RequestClientCert},
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 64, SendPingTimeout: 10 * time.Second, PingTimeout: 10 * time.Second},
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, guestKey{}, &guest{})
		},
		ErrorLog: quiet(s.cfg.Log),
	}
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+api.PathJoin, s.atMost(maxJoins, s.call("join", s.join)))
	mux.Handle("POST "+api.PathRenew, s.call("renew", s.asAgent(s.renew)))
	mux.Handle("POST "+api.PathSession, http.HandlerFunc(s.session))
	mux.Handle("POST "+api.PathHeartbeat, s.call("heartbeat", s.asAgent(s.heartbeat)))
	mux.Handle("POST "+api.PathEnter, s.call("enter", s.asAgent(s.enter)))
	mux.Handle("POST "+api.PathLeave, s.call("leave", s.asAgent(s.leave)))
	mux.Handle("POST "+api.PathConvert, s.call("convert", s.asAgent(s.convert)))
	mux.Handle("POST "+api.PathConverted, s.call("converted", s.asAgent(s.converted)))
	mux.Handle("POST "+api.PathHolding, s.call("holding", s.asAgent(s.holding)))
	mux.Handle("GET "+api.PathTrees, s.call("trees", s.asAgent(s.trees)))
	mux.Handle("GET "+api.PathTrees+"/{image}", s.call("tree", s.asAgent(s.tree)))
	return mux
}

// call makes an http.Handler of what answers with a value or an error.
func (s *server) call(name string, do func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, api.MaxRequest)
		answer, err := do(r)
		status := http.StatusOK
		if err != nil {
			status = statusOf(err)
			answer = failureOf(err)
			s.keeper.log.Debug("call failed", "call", name, "status", status, "err", err)
		}
		s.metrics.requests.WithLabelValues(name, strconv.Itoa(status)).Inc()
		respond(w, status, answer)
	})
}

func respond(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer) //nolint:errcheck // the client is gone
}

// statusOf returns the status that says what kind an error is.
func statusOf(err error) int {
	var elsewhere *misdirected
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &elsewhere):
		return http.StatusMisdirectedRequest
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, api.ErrCredential):
		return http.StatusUnauthorized
	case errors.Is(err, errDenied), errors.Is(err, errToken):
		return http.StatusForbidden
	case errors.Is(err, errNotFound), errors.Is(err, access.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, errNoSession):
		return http.StatusConflict
	case errors.Is(err, errNoLease):
		return http.StatusPreconditionFailed
	case errors.Is(err, errBusy):
		return http.StatusTooManyRequests
	case errors.Is(err, errUnavailable), errors.Is(err, store.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	case errors.Is(err, errInvalid), errors.Is(err, errRequest), errors.Is(err, access.ErrInvalid):
		return http.StatusBadRequest
	default:
		return http.StatusInternalServerError
	}
}

func failureOf(err error) api.Failure {
	f := api.Failure{Error: strings.ReplaceAll(err.Error(), "\n", "; ")}
	if elsewhere, ok := errors.AsType[*misdirected](err); ok {
		f.Owner = elsewhere.owner
	}
	return f
}

// atMost lets the others wait.
func (s *server) atMost(n int, h http.Handler) http.Handler {
	free := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
			h.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
}

// decodeBody reads a request's JSON. Fields that do not exist are ignored: a newer agent may know more.
func decodeBody[T any](r *http.Request) (value T, err error) {
	d := json.NewDecoder(r.Body)
	if err = d.Decode(&value); err == nil {
		var rest json.RawMessage
		if err = d.Decode(&rest); errors.Is(err, io.EOF) {
			return value, nil
		}
	}
	return value, fmt.Errorf("%w: request: %w", errInvalid, err)
}

// guest is whoever is at the other end of a connection; a certificate is looked at once.
type guest struct {
	once  sync.Once
	peer  string
	until time.Time
	err   error
}

type guestKey struct{}

// who returns the peer ID of the agent that calls.
func (s *server) who(r *http.Request) (string, error) {
	g, ok := r.Context().Value(guestKey{}).(*guest)
	if !ok || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", errNoCertificate
	}
	now := time.Now()
	g.once.Do(func() {
		cert := r.TLS.PeerCertificates[0]
		g.peer, g.err = api.VerifyCredential(cert.Raw, s.authority.ca, now)
		g.until = cert.NotAfter
	})
	if g.err == nil && now.After(g.until) {
		return "", fmt.Errorf("%w: it expired", api.ErrCredential)
	}
	return g.peer, g.err
}

var errNoCertificate = fmt.Errorf("%w: the call needs the certificate of an agent", api.ErrCredential)

// peerOf returns the peer ID of the agent at the other end of a connection, which is of the cluster now.
func (s *server) peerOf(c tls.ConnectionState) (string, error) {
	if len(c.PeerCertificates) == 0 {
		return "", errNoCertificate
	}
	peer, err := api.VerifyCredential(c.PeerCertificates[0].Raw, s.authority.ca, time.Now())
	if err == nil && s.keeper.isRevoked(peer) {
		err = fmt.Errorf("%w: %s is revoked", errDenied, peer)
	}
	return peer, err
}

// asAgent makes a call of an agent that is authenticated, not revoked, and does not call too often.
func (s *server) asAgent(do func(r *http.Request, peer string) (any, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		peer, err := s.who(r)
		if err != nil {
			return nil, err
		}
		if !s.limit(peer).Allow() {
			return nil, fmt.Errorf("%w of %s, at most %d a second", errBusy, peer, s.cfg.RequestsPerSecond)
		}
		if s.keeper.isRevoked(peer) {
			return nil, fmt.Errorf("%w: %s is revoked", errDenied, peer)
		}
		return do(r, peer)
	}
}

// manyLimits is how many agents' allowances are kept before those that are full, which say nothing, are thrown away.
const manyLimits = 10_000

func (s *server) limit(peer string) *rate.Limiter {
	burst := 10 * s.cfg.RequestsPerSecond
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limits[peer] == nil {
		if len(s.limits) >= manyLimits {
			for p, l := range s.limits {
				if l.Tokens() >= float64(burst) {
					delete(s.limits, p)
				}
			}
		}
		s.limits[peer] = rate.NewLimiter(rate.Limit(s.cfg.RequestsPerSecond), burst)
	}
	return s.limits[peer]
}

func (s *server) join(r *http.Request) (any, error) {
	request, err := decodeBody[api.JoinRequest](r)
	if err != nil {
		return nil, err
	}
	peer, key, err := requester(request.Request)
	if err != nil {
		return nil, err
	}
	if s.keeper.isRevoked(peer) {
		return nil, fmt.Errorf("%w: %s is revoked", errDenied, peer)
	}
	if err := s.tokens.use(r.Context(), request.ID, request.Secret); err != nil {
		s.keeper.log.Warn("an agent could not join", "peer", peer, "from", r.RemoteAddr, "token", request.ID, "err", err)
		return nil, err
	}
	s.keeper.log.Info("an agent joined", "peer", peer, "from", r.RemoteAddr, "token", request.ID)
	return s.authority.agent(peer, key, time.Now())
}

func (s *server) renew(r *http.Request, peer string) (any, error) {
	request, err := decodeBody[api.RenewRequest](r)
	if err != nil {
		return nil, err
	}
	id, key, err := requester(request.Request)
	if err == nil && id != peer {
		err = fmt.Errorf("%w: it is for %s", errRequest, id)
	}
	if err != nil {
		return nil, err
	}
	return s.authority.agent(peer, key, time.Now())
}

func (s *server) heartbeat(r *http.Request, peer string) (any, error) {
	h, err := decodeBody[api.Heartbeat](r)
	if err == nil {
		err = validHeartbeat(h, peer, s.cfg.Stripes)
	}
	if err != nil {
		return nil, err
	}
	return s.keeper.heartbeat(peer, r.Header.Get(api.SessionHeader), h)
}

func (s *server) enter(r *http.Request, peer string) (any, error) {
	request, err := decodeBody[api.EnterRequest](r)
	if err == nil {
		err = validEnter(request, s.cfg.Stripes)
	}
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.keeper.enter(r.Context(), peer, r.Header.Get(api.SessionHeader), request)
}

func (s *server) leave(r *http.Request, peer string) (any, error) {
	request, err := decodeBody[api.LeaveRequest](r)
	if err == nil {
		err = validImage(request.Image)
	}
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.keeper.quit(r.Context(), peer, r.Header.Get(api.SessionHeader), request.Image)
}

func (s *server) convert(r *http.Request, peer string) (any, error) {
	request, err := decodeBody[api.ConvertRequest](r)
	if err == nil {
		err = validConvert(request)
	}
	if err != nil {
		return nil, err
	}
	return s.keeper.convert(r.Context(), peer, r.Header.Get(api.SessionHeader), request)
}

func (s *server) converted(r *http.Request, peer string) (any, error) {
	request, err := decodeBody[api.ConvertedRequest](r)
	if err == nil {
		err = validConverted(request, peer)
	}
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.keeper.converted(r.Context(), peer, r.Header.Get(api.SessionHeader), request)
}

func (s *server) holding(r *http.Request, peer string) (any, error) {
	request, err := decodeBody[api.HoldingRequest](r)
	if err == nil {
		err = validHolder(request.Agent, peer)
	}
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.keeper.holding(r.Context(), peer, r.Header.Get(api.SessionHeader), request.Agent)
}

func (s *server) trees(r *http.Request, _ string) (any, error) { return s.keeper.list(r.Context()) }

func (s *server) tree(r *http.Request, _ string) (any, error) {
	image := digest.Digest(r.PathValue("image"))
	if err := validImage(image); err != nil {
		return nil, err
	}
	return s.keeper.view(image)
}

// session serves a session from its beginning to its end.
func (s *server) session(w http.ResponseWriter, r *http.Request) {
	opened, err := s.asAgent(func(r *http.Request, peer string) (any, error) {
		r.Body = http.MaxBytesReader(w, r.Body, api.MaxRequest)
		request, err := decodeBody[api.SessionRequest](r)
		if err == nil {
			err = validHeartbeat(request.Heartbeat, peer, s.cfg.Stripes)
		}
		if err != nil {
			return nil, err
		}
		return s.keeper.open(request)
	})(r)
	status := http.StatusOK
	if err != nil {
		status = statusOf(err)
	}
	s.metrics.requests.WithLabelValues("session", strconv.Itoa(status)).Inc()
	if err != nil {
		respond(w, status, failureOf(err))
		return
	}
	session := opened.(*session)
	defer s.keeper.closed(session)
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	for say(w, control, session.take()) == nil {
		select {
		case <-session.over:
			say(w, control, session.take()) //nolint:errcheck // it is the end anyway
			return
		case <-session.wake:
		case <-r.Context().Done():
			return
		}
	}
}

// say writes events. An agent that does not take them in time loses its session.
func say(w io.Writer, control *http.ResponseController, events []api.Event) error {
	if err := control.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil {
		return err
	}
	encoder := json.NewEncoder(w)
	for _, e := range events {
		if err := encoder.Encode(e); err != nil {
			return err
		}
	}
	if err := control.Flush(); err != nil {
		return err
	}
	return control.SetWriteDeadline(time.Time{})
}
