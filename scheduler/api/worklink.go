package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/libp2p/go-yamux/v5"

	"github.com/xylem-project/xylem/scheduler/api/lane"
)

// workConfig is that of both ends of a work connection. Each stream carries HTTP/1.1, one request at a time: measured against
// HTTP/2 on the same TLS connection a request costs half.
func workConfig() *yamux.Config {
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	cfg.KeepAliveInterval, cfg.ConnectionWriteTimeout = 3*time.Second, 5*time.Second
	cfg.MaxIncomingStreams, cfg.AcceptBacklog = 20_000, 1024
	return cfg
}

// OpenWork makes a session of a connection on which an agent awaits work. The caller closes the session, which closes conn.
func OpenWork(conn net.Conn) (*yamux.Session, error) { return yamux.Client(conn, workConfig(), nil) }

// work keeps a work connection to every scheduler that is known, until ctx ends.
func (c *Client) work(ctx context.Context) {
	if c.cfg.Work == nil {
		return
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	with := map[string]bool{}
	for ticker := time.NewTicker(time.Second); ; {
		for _, at := range c.schedulers() {
			if !with[at] {
				with[at] = true
				workers.Go(func() { c.workFor(ctx, at) })
			}
		}
		select {
		case <-ctx.Done():
			ticker.Stop()
			return
		case <-ticker.C:
		}
	}
}

// workFor works for one scheduler, connecting again and again.
func (c *Client) workFor(ctx context.Context, scheduler string) {
	for pause := newPause(); ctx.Err() == nil; pause.wait(ctx) {
		start := time.Now()
		err := c.workOnce(ctx, scheduler)
		if time.Since(start) > lastPause {
			pause = newPause()
		}
		level := slog.LevelDebug
		if time.Since(start) > lastPause && ctx.Err() == nil {
			level = slog.LevelWarn
		}
		c.cfg.Log.Log(ctx, level, "no work from scheduler", "scheduler", scheduler, "err", err)
	}
}

func (c *Client) workOnce(ctx context.Context, scheduler string) error {
	at, err := url.Parse(scheduler)
	if err != nil {
		return err
	}
	security := c.id.tls()
	security.NextProtos = []string{WorkProtocol}
	dialing, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: security}).DialContext(dialing, "tcp", at.Host)
	if err != nil {
		return err
	}
	return ServeWork(ctx, conn, c.cfg.Work)
}

// ServeWork answers what comes on a connection that the other end uses by OpenWork, until ctx ends or the connection does, and
// closes it. Requests that run then are cancelled.
func ServeWork(ctx context.Context, conn net.Conn, h http.Handler) error {
	session, err := yamux.Server(conn, workConfig(), nil)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lanes := &lanes{ctx: ctx, next: h}
	srv := &http.Server{
		Handler: lanes, MaxHeaderBytes: 64 << 10, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { session.Close() }) //nolint:errcheck // it is over
	defer stop()
	err = srv.Serve(streams{session})
	cancel()
	err = errors.Join(err, session.Close(), srv.Close())
	lanes.open.Wait()
	return err
}

// lanes serves the lanes that are asked for, and hands everything else on.
type lanes struct {
	ctx  context.Context
	next http.Handler
	open sync.WaitGroup
}

func (l *lanes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != WorkLane {
		l.next.ServeHTTP(w, r)
		return
	}
	if r.Header.Get("Upgrade") != laneProtocol {
		http.Error(w, "want Upgrade: "+laneProtocol, http.StatusUpgradeRequired)
		return
	}
	conn, both, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	l.open.Add(1)
	defer l.open.Done()
	if _, err = fmt.Fprintf(both, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", laneProtocol); err == nil {
		err = both.Flush()
	}
	if err != nil {
		conn.Close()
		return
	}
	lane.Serve(l.ctx, conn, l.next) //nolint:errcheck // the scheduler sees that it ended, and asks for another
}

// laneProtocol is the name of a lane in Upgrade.
const laneProtocol = "xylem-lane"

// OpenLane asks for a lane on a stream of a session. The caller closes it.
func OpenLane(ctx context.Context, stream http.RoundTripper) (*lane.Client, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+WorkLane, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", laneProtocol)
	resp, err := stream.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		return nil, fmt.Errorf("the agent opens no lane: %s", resp.Status)
	}
	return lane.NewClient(conn), nil
}

// streams are the streams of a session, as a net.Listener.
type streams struct{ *yamux.Session }

func (s streams) Accept() (net.Conn, error) { return s.Session.Accept() }

func (s streams) Addr() net.Addr { return s.Session.LocalAddr() }
