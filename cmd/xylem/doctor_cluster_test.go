package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/xylem-project/xylem/agent"
)

func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDoctorSchedulers(t *testing.T) {
	cfg := runScheduler(t)
	d := doctor{config: agent.Default()}
	if f := append(d.checkSchedulers(t.Context()), d.checkListen(t.Context())...); len(f) > 0 {
		t.Errorf("an agent without schedulers: %+v", f)
	}
	here, nowhere := "https://"+cfg.Listen, "https://"+freeAddress(t)
	d.config.Schedulers = []string{here}
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusOK, here)
	d.config.JoinTokenFile = cfg.TokenFile()
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusOK, here)
	d.config.Schedulers = []string{here, nowhere}
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusWarn, "1 of 2", nowhere, "xylem scheduler")
	d.config.Schedulers = []string{nowhere, "http://a"}
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusFail, nowhere, "http://a", "https://host:port")
}

func TestDoctorJoinToken(t *testing.T) {
	cfg, other := runScheduler(t), runScheduler(t)
	d := doctor{config: agent.Default()}
	d.config.Schedulers = []string{"https://" + cfg.Listen}
	d.config.JoinTokenFile = other.TokenFile()
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusFail, "another cluster")
	d.config.JoinTokenFile = "/does/not/exist"
	d.config.Root = t.TempDir()
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusFail, "/does/not/exist", "token create")
	if err := os.MkdirAll(filepath.Join(d.config.Root, "cluster"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.config.Root, "cluster", "membership.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusOK)
	d.config.JoinTokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(d.config.JoinTokenFile, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	checkFinding(t, d.checkSchedulers(t.Context()), "schedulers", statusFail, d.config.JoinTokenFile)
}

// The agent of this test is the test's own process, with an admin socket.
func TestDoctorListen(t *testing.T) {
	d := doctor{config: agent.Default()}
	d.config.Schedulers, d.config.State = []string{"https://127.0.0.1:1"}, t.TempDir()
	l := listenLoopback(t)
	defer l.Close()
	d.config.Listen = netip.MustParseAddrPort(l.Addr().String())
	checkFinding(t, d.checkListen(t.Context()), "listen", statusFail, l.Addr().String(), "ss -ltnp")
	admin, err := net.Listen("unix", d.config.AdminSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	checkFinding(t, d.checkListen(t.Context()), "listen", statusOK, "the agent's")
	l.Close()
	checkFinding(t, d.checkListen(t.Context()), "listen", statusWarn, "restart")
	admin.Close()
	checkFinding(t, d.checkListen(t.Context()), "listen", statusOK, "free")
	d.config.Listen = netip.MustParseAddrPort("192.0.2.1:9752")
	checkFinding(t, d.checkListen(t.Context()), "listen", statusFail, "192.0.2.1:9752", "this machine")
}
