package trees

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/tree/stream"
)

// strangerVariable makes the test's binary a program that runs on a host and asks an agent for blocks, and says how.
const strangerVariable = "XYLEM_TEST_STRANGER"

// identity is what somebody has to show: a key, a new one if there is none, and a certificate.
type identity struct {
	KeyFile     string
	Certificate []byte
}

// question is whom a stranger asks for what.
type question struct {
	identity
	Peer   string
	Addr   netip.AddrPort
	Image  digest.Digest
	Blocks int
}

// outcome is what came of it.
type outcome struct {
	Denied bool
	Error  string
}

// ask has somebody with an identity ask the agent of a host for the image's blocks, from another host.
func (s *spread) ask(t *testing.T, h *lab.Host, who identity) (o outcome) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	im, err := s.info(t.Context(), h)
	must(t, err)
	q, err := json.Marshal(question{who, s.peer(t, h), netip.AddrPortFrom(h.Addr, 9752), im.Image, im.Blocks})
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), strangerVariable+"="+strconv.Quote(string(q)))
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = t.Output()
	must(t, s.Hosts()[0].Start(cmd))
	err = json.NewDecoder(out).Decode(&o)
	must(t, errors.Join(err, cmd.Wait()))
	return o
}

func beStranger() error {
	text, err := strconv.Unquote(os.Getenv(strangerVariable))
	if err != nil {
		return err
	}
	var q question
	if err := json.Unmarshal([]byte(text), &q); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = q.attach(ctx)
	o := outcome{Denied: errors.Is(err, blockfmt.ErrDenied)}
	if err != nil {
		o.Error = err.Error()
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// attach makes the stranger a child of the agent, and returns how that failed.
func (q question) attach(ctx context.Context) error {
	node, err := stream.NewNode(stream.NodeConfig{Authorize: func(stream.PeerID) error { return nil }, Handshake: patience})
	if err != nil {
		return err
	}
	key, err := q.key()
	if err != nil {
		return err
	}
	host, err := stream.NewHost(stream.HostConfig{Node: node, Key: key, Credential: func() []byte { return q.Certificate }})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- host.Run(running) }()
	defer func() { stop(); <-done }()
	share, err := q.share(node)
	if err != nil {
		return err
	}
	peer, err := host.Attach(ctx, share, stream.Address{ID: stream.PeerID(q.Peer), Addrs: []netip.AddrPort{q.Addr}}, stream.Attachment{Epoch: uint64(time.Now().UnixNano())})
	if err == nil {
		err = peer.Close()
	}
	return errors.Join(err, share.Close())
}

func (q question) key() (ed25519.PrivateKey, error) {
	if q.KeyFile == "" {
		_, key, err := ed25519.GenerateKey(nil)
		return key, err
	}
	text, err := os.ReadFile(q.KeyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", q.KeyFile)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return key.(ed25519.PrivateKey), nil
}

// share is a share of the image as far as an agent can tell before it serves any block.
func (q question) share(node *stream.Node) (*stream.Share, error) {
	blob := blocktest.NewBlob(1, q.Blocks<<10, 1<<10)
	image, err := stream.NewImage(q.Image, 2, blob.Index)
	if err != nil {
		return nil, err
	}
	return node.Share(stream.ShareConfig{Image: image, Source: new(blocktest.Memory), Store: new(blocktest.Memory)})
}
