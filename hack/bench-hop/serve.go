package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/xylem-project/xylem/tree/stream"
)

// serveTLS sends the bytes to everybody who connects.
func serveTLS(bytes []byte) (net.Listener, error) {
	certificate, err := selfSigned()
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // the listener was closed
			}
			_, _ = c.Write(bytes) // the receiver counts
			c.Close()
		}
	}()
	return l, nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench-hop"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// agent is a node on a host that runs.
type agent struct {
	node *stream.Node
	host *stream.Host
	stop context.CancelFunc
	done chan error
}

func startAgent(ctx context.Context, listen ...netip.AddrPort) (*agent, error) {
	node, err := stream.NewNode(stream.NodeConfig{Authorize: func(stream.PeerID) error { return nil }})
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	host, err := stream.NewHost(stream.HostConfig{Node: node, Key: key, Listen: listen})
	if err != nil {
		return nil, err
	}
	a := &agent{node: node, host: host, done: make(chan error, 1)}
	ctx, a.stop = context.WithCancel(ctx)
	go func() { a.done <- host.Run(ctx) }()
	<-host.Ready()
	return a, nil
}

func (a *agent) close() error {
	a.stop()
	return <-a.done
}

// parent is an agent with all blocks.
type parent struct {
	*agent
	share *stream.Share
}

func startParent(ctx context.Context, b *blob) (*parent, error) {
	im, err := b.description().image()
	if err != nil {
		return nil, err
	}
	a, err := startAgent(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		return nil, err
	}
	s, err := a.node.Share(stream.ShareConfig{Image: im, Store: b, Source: b})
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return &parent{a, s}, nil
}

func (p *parent) address() stream.Address { return p.host.Address() }

func (p *parent) close() error { return errors.Join(p.share.Close(), p.agent.close()) }

// setup tells the receiving process what there is.
type setup struct {
	Blob     description
	TLS      string
	Parent   stream.Address
	Profiles string
}

// measured is what the receiving process answers to the name of a way.
type measured struct {
	Took, CPU time.Duration
	Error     string
}

// receiver is the receiving process.
type receiver struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *gob.Encoder
	dec *gob.Decoder
}

func startReceiver(ctx context.Context, opts options, s setup) (*receiver, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-receive", "-blocks", strconv.Itoa(opts.blocks))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &receiver{cmd: cmd, in: in, enc: gob.NewEncoder(in), dec: gob.NewDecoder(out)}
	if err := r.enc.Encode(s); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// do has the blocks received in one way.
func (r *receiver) do(way string) (measured, error) {
	var m measured
	if err := r.enc.Encode(way); err != nil {
		return m, err
	}
	if err := r.dec.Decode(&m); err != nil {
		return m, err
	}
	if m.Error != "" {
		return m, fmt.Errorf("%s: %s", way, m.Error)
	}
	return m, nil
}

func (r *receiver) close() error { return errors.Join(r.in.Close(), r.cmd.Wait()) }
