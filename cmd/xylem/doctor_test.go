package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/agent"
)

// fakeSystem makes a directory that looks like a machine, with these files.
func fakeSystem(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// checkFinding fails the test unless findings has one of the check with this status and words in it.
func checkFinding(t *testing.T, findings []finding, check string, want status, words ...string) {
	t.Helper()
	for _, f := range findings {
		if f.Check != check {
			continue
		}
		if f.Status != want {
			t.Errorf("%s: got %+v, want %s", check, f, want)
		}
		if f.Status != statusOK && f.Fix == "" {
			t.Errorf("%s: %+v does not say what to change", check, f)
		}
		for _, w := range words {
			if !strings.Contains(f.What+"; "+f.Fix, w) {
				t.Errorf("%s: %+v is without %q", check, f, w)
			}
		}
		return
	}
	t.Errorf("no finding of %s in %+v", check, findings)
}

func TestDoctorKernel(t *testing.T) {
	for release, want := range map[string]status{
		"6.18.44-fc\n": statusOK, "6.12.0": statusOK, "7.0.1": statusOK, "6.11.9": statusWarn, "5.15.0-91-generic": statusWarn, "odd": statusFail,
	} {
		d := doctor{sys: fakeSystem(t, map[string]string{"proc/sys/kernel/osrelease": release})}
		checkFinding(t, d.checkKernel(t.Context()), "kernel", want, strings.TrimSpace(release))
	}
}

func TestDoctorSystemWithNothing(t *testing.T) {
	d := doctor{sys: fakeSystem(t, map[string]string{"proc/filesystems": "nodev\tsysfs\n\text4\n"})}
	findings := d.checkFilesystems(t.Context())
	checkFinding(t, findings, "overlay", statusFail, "modprobe overlay")
	checkFinding(t, findings, "fuse", statusFail, "modprobe fuse")
	checkFinding(t, findings, "erofs", statusWarn, "modprobe erofs", "slower")
	findings = d.checkDevices(t.Context())
	checkFinding(t, findings, "/dev/fuse", statusFail, "modprobe fuse")
	checkFinding(t, findings, "/dev/loop-control", statusWarn, "modprobe loop")
}

func TestDoctorThisSystem(t *testing.T) {
	var d doctor
	checkFinding(t, d.checkUser(t.Context()), "user", statusOK)
	checkFinding(t, d.checkDevices(t.Context()), "/dev/fuse", statusOK)
	checkFinding(t, d.checkFilesystems(t.Context()), "overlay", statusOK)
	checkFinding(t, d.checkMountWay(t.Context()), "mount way", statusOK)
}

func TestDoctorDisk(t *testing.T) {
	config := agent.Default()
	config.Root = filepath.Join(t.TempDir(), "not", "there", "yet")
	config.CacheBudget = 1 << 20
	checkFinding(t, (&doctor{config: config}).checkDisk(t.Context()), "disk", statusOK, "1 MiB")
	config.CacheBudget = 1 << 60
	checkFinding(t, (&doctor{config: config}).checkDisk(t.Context()), "disk", statusWarn, "cache_budget")
}

func TestDoctorContainerdConfig(t *testing.T) {
	const proxy = "[proxy_plugins.xylem]\ntype = \"snapshot\"\naddress = \"/run/xylem/agent.sock\"\n"
	const exports = "[proxy_plugins.xylem.exports]\nenable_remote_snapshot_annotations = \"true\"\n"
	const cri1, cri2 = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n", "[plugins.'io.containerd.cri.v1.images']\n"
	const pods, annotated, bare = "snapshotter = \"xylem\"\n", "disable_snapshot_annotations = false\n", "disable_snapshot_annotations = true\n"
	tests := []struct {
		name, config string
		proxy, cri   status
		words        []string
	}{
		{"1.x, nothing", "version = 2\n" + cri1 + "snapshotter = \"overlayfs\"\n" + bare, statusFail, statusWarn, []string{"/run/xylem/agent.sock", "grpc.v1.cri"}},
		{"1.x, complete", "version = 2\n" + proxy + cri1 + pods + annotated, statusOK, statusOK, nil},
		{"1.x, no annotations", "version = 2\n" + proxy + cri1 + pods + bare, statusOK, statusFail, []string{"disable_snapshot_annotations = false"}},
		{"1.x, other socket", "version = 2\n" + strings.Replace(proxy, "/run/xylem", "/run/other", 1) + cri1 + pods + annotated, statusFail, statusOK, []string{"/run/other"}},
		{"1.x, misspelt", "version = 2\n" + proxy + cri1 + "snapshotter = \"xylm\"\n" + annotated, statusOK, statusFail, []string{"xylm", "setup containerd"}},
		{"2.x, complete", "version = 3\n" + proxy + exports + cri2 + pods + annotated, statusOK, statusOK, nil},
		{"2.x, no exports", "version = 3\n" + proxy + cri2 + pods + annotated, statusWarn, statusOK, []string{"enable_remote_snapshot_annotations"}},
		{"2.x, pods elsewhere", "version = 4\n" + proxy + exports + cri2 + "snapshotter = \"overlayfs\"\n" + bare, statusOK, statusWarn, []string{"cri.v1.images"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			dump := filepath.Join(dir, "dump.toml")
			binary := filepath.Join(dir, "containerd")
			for path, text := range map[string]string{dump: test.config, binary: fmt.Sprintf("#!/bin/sh\n[ $1 = --version ] && echo containerd debian 1.7.28 && exit\ncat %q\n", dump)} {
				if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			d := doctor{config: agent.Default(), containerd: binary, containerdConfig: filepath.Join(dir, "config.toml")}
			findings := d.checkContainerdConfig(t.Context())
			checkFinding(t, findings, "proxy_plugins", test.proxy)
			checkFinding(t, findings, "CRI", test.cri)
			for _, w := range test.words {
				if text := fmt.Sprint(findings); !strings.Contains(text, w) {
					t.Errorf("%s is without %q", text, w)
				}
			}
		})
	}
}

// The installed containerd merges a real file with its defaults.
func TestDoctorRealContainerdConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	text := "version = 2\n[proxy_plugins.xylem]\ntype = \"snapshot\"\naddress = \"/run/xylem/agent.sock\"\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := doctor{config: agent.Default(), containerd: "containerd", containerdConfig: file}
	findings := d.checkContainerdConfig(t.Context())
	checkFinding(t, findings, "proxy_plugins", statusOK)
	checkFinding(t, findings, "CRI", statusWarn, "overlayfs")
	if err := os.WriteFile(file, []byte("version = \"what\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	checkFinding(t, d.checkContainerdConfig(t.Context()), "containerd", statusFail, file)
	d.containerd = "/does/not/exist"
	checkFinding(t, d.checkContainerdConfig(t.Context()), "containerd", statusFail, "install containerd")
}

func TestDoctorTrust(t *testing.T) {
	d := doctor{config: agent.Default()}
	checkFinding(t, d.checkTrust(t.Context()), "trust", statusWarn, "trusted_keys")
	d.config.TrustedKeys = []string{"/does/not/exist"}
	checkFinding(t, d.checkTrust(t.Context()), "trust", statusFail, "/does/not/exist")
	file := filepath.Join(t.TempDir(), "converter.pub")
	if err := os.WriteFile(file, []byte(do(t, "key").out), 0o644); err != nil {
		t.Fatal(err)
	}
	d.config.TrustedKeys = []string{file}
	checkFinding(t, d.checkTrust(t.Context()), "trust", statusOK)
}

// A node without agent and containerd: exit code 1, every finding on one line, the same as JSON.
func TestDoctorOutput(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	args := []string{"--root", root, "--state", state, "doctor", "--address", filepath.Join(state, "no.sock")}
	r := do(t, args...)
	if r.code != 1 || r.stderr != "" {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
	var findings []finding
	j := do(t, append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(j.out), &findings); err != nil || j.code != 1 {
		t.Fatalf("exit code %d, %v in %q", j.code, err, j.out)
	}
	checkFinding(t, findings, "agent", statusFail, "xylem agent", state)
	checkFinding(t, findings, "containerd.sock", statusFail, "no.sock", "--address")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(lines) != len(findings) {
		t.Fatalf("%d lines for %d findings: %q", len(lines), len(findings), r.out)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, string(findings[i].Status)) {
			t.Errorf("line %q for %+v", line, findings[i])
		}
	}
}
