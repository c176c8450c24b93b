package stream_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// echoProtocol is a service that sends back what it gets.
const echoProtocol = "/test/echo/1"

func echo(ctx context.Context, conn net.Conn, _ stream.PeerID) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	io.Copy(conn, conn) //nolint:errcheck // the peer has gone
}

// echoing returns the running host of a service, and a configuration of somebody who is admitted to it.
func echoing(t *testing.T) (*stream.Host, stream.HostConfig) {
	ours := cluster("ours")
	cfg := member(newNode(t, stream.NodeConfig{}), ours, ours.issue)
	cfg.Services = map[string]stream.Service{echoProtocol: echo}
	return runHost(t, cfg), member(newNode(t, stream.NodeConfig{}), ours, ours.issue)
}

func TestService(t *testing.T) {
	host, cfg := echoing(t)
	conn, err := runHost(t, cfg).DialService(t.Context(), echoProtocol, host.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent, got := bytes.Repeat([]byte("some bytes "), 20_000), make([]byte, 11*20_000)
	go conn.Write(sent) //nolint:errcheck // seen by what comes back
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%v, or other bytes came back", err)
	}
	if conn.RemoteAddr().String() != string(host.ID()) {
		t.Errorf("the other side is %s, want %s", conn.RemoteAddr(), host.ID())
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(got); err == nil {
		t.Error("a read with a deadline got bytes that nobody sent")
	}
}

// A service is for members only, and for those who know it.
func TestServiceIsRefused(t *testing.T) {
	host, cfg := echoing(t)
	_, err := runHost(t, cfg).DialService(t.Context(), "/test/unknown/1", host.Address())
	wantErr(t, "unknown service", err, blockfmt.ErrUnsupported)
	stranger := member(newNode(t, stream.NodeConfig{}), "ours", cluster("theirs").issue)
	_, err = runHost(t, stranger).DialService(t.Context(), echoProtocol, host.Address())
	wantErr(t, "stranger", err, blockfmt.ErrDenied)
	particular := member(newNode(t, stream.NodeConfig{}), "theirs", cluster("ours").issue)
	_, err = runHost(t, particular).DialService(t.Context(), echoProtocol, host.Address())
	wantErr(t, "stranger's service", err, blockfmt.ErrDenied)
}

// The connections of a host that ends, or of a peer that is not wanted any more, end; nobody waits for what does not come.
func TestServiceEnds(t *testing.T) {
	for name, end := range map[string]func(host *stream.Host, stop func(), dialer stream.PeerID){
		"host ends":      func(_ *stream.Host, stop func(), _ stream.PeerID) { stop() },
		"peer is banned": func(host *stream.Host, _ func(), dialer stream.PeerID) { host.Disconnect(dialer) }, //nolint:errcheck // seen by the read
	} {
		t.Run(name, func(t *testing.T) {
			cfg := stream.HostConfig{Node: newNode(t, stream.NodeConfig{}), Listen: loopbacks, Services: map[string]stream.Service{echoProtocol: echo}}
			host := stopped(t, cfg)
			stop := start(t, host)
			dialer := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
			conn, err := dialer.DialService(t.Context(), echoProtocol, host.Address())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			end(host, stop, dialer.ID())
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("bytes of a connection that has ended")
			}
		})
	}
}

// A peer that accepts streams and is silent is given up with the context.
func TestServiceThatIsSilent(t *testing.T) {
	host := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{}), Listen: loopbacks})
	host.HandleBare(func(io.ReadWriteCloser) {})
	dialer := runHost(t, stream.HostConfig{Node: newNode(t, stream.NodeConfig{})})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := dialer.DialService(ctx, echoProtocol, host.Address())
	wantErr(t, "silent peer", err, context.DeadlineExceeded)
}

// What services send counts for the upload limit.
func TestServiceIsPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, stream.NodeConfig{Up: 10 << 20})
		begin := time.Now()
		for range 4 {
			if err := n.Upload(t.Context(), 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took < 250*time.Millisecond || took > 500*time.Millisecond {
			t.Errorf("4 MiB passed a limit of 10 MiB/s in %v", took)
		}
		if err := newNode(t, stream.NodeConfig{}).Upload(t.Context(), 1<<30); err != nil {
			t.Errorf("without a limit: %v", err)
		}
	})
}
