package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/hack/lab"
)

// asProgram makes the test's binary the program itself: a lab has an owner as long as the process that made it runs.
const asProgram = "LABCTL_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// labctl runs the program in this process and returns its exit code and what it prints.
func labctl(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errors bytes.Buffer
	c := command{in: strings.NewReader(stdin), out: &out, err: &errors}
	code = c.run(t.Context(), args)
	return code, out.String(), errors.String()
}

func xylem() string {
	if path := os.Getenv("XYLEM"); path != "" {
		return path
	}
	return "../../../bin/xylem"
}

// TestLife makes a lab that stays, uses it as another process would, and removes it.
func TestLife(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "labctl-") // a short path, for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	defer labctl(t, "", "down", "--dir", dir)
	upArgs := []string{"up", "--dir", dir, "--xylem", xylem(), "--hosts", "2", "--link", "100mbit", "--uplink", "h2=10mbit", "--agents"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	up := exec.Command(self, upArgs...)
	up.Env = append(os.Environ(), asProgram+"=yes")
	if out, err := up.CombinedOutput(); err != nil || !strings.Contains(string(out), "10.99.1.2") {
		t.Fatalf("up: %v, %s", err, out)
	}
	_, out, _ := labctl(t, "", "ls", "--dir", dir, "--json")
	var labs []lab.State
	if err := json.Unmarshal([]byte(out), &labs); err != nil || len(labs) != 1 || len(labs[0].Hosts) != 3 || !labs[0].Detached {
		t.Fatalf("ls: %s, %v", out, err)
	}
	id := labs[0].ID
	program, err := filepath.Abs(xylem())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		args        []string
		stdin       string
		code        int
		out, errOut string
	}{
		{name: "list", args: []string{"ls", "--dir", dir}, out: "h2        10.99.1.2"},
		{name: "address", args: []string{"run", "--dir", dir, "h2", "--", "ip", "addr"}, out: "10.99.1.2/16"},
		{name: "rates", args: []string{"run", "--dir", dir, "--lab", id, "h2", "--", "tc", "qdisc", "show", "dev", "eth0"}, out: "rate 10Mbit"},
		{name: "agent", args: []string{"run", "--dir", dir, "h1", "--", "sh", "-c", program + ` --config "$XYLEM_CONFIG" images --output json`}, out: "[]"},
		{name: "input", args: []string{"run", "--dir", dir, "h1", "--", "cat"}, stdin: "text", out: "text"},
		{name: "exit code", args: []string{"run", "--dir", dir, "h1", "--", "sh", "-c", "exit 7"}, code: 7},
		{name: "no such host", args: []string{"run", "--dir", dir, "h9", "--", "true"}, code: 1, errOut: `no host "h9"`},
		{name: "no such program", args: []string{"run", "--dir", dir, "h1", "--", "nosuchprogram"}, code: 1, errOut: "nosuchprogram"},
		{name: "another id", args: []string{"down", "--dir", dir, "xl-none"}, code: 1, errOut: "there is none"},
		{name: "down", args: []string{"down", "--dir", dir, id}, out: "removed " + id},
		{name: "nothing left", args: []string{"run", "--dir", dir, "h1", "--", "true"}, code: 1, errOut: "no such lab"},
		{name: "down again", args: []string{"down", "--dir", dir}},
	} {
		code, out, errors := labctl(t, c.stdin, c.args...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errors, c.errOut) || strings.Count(errors, "\n") > 1 {
			t.Errorf("%s: %d, %q, %q", c.name, code, out, errors)
		}
	}
	if left, err := filepath.Glob("/run/netns/" + id + "*"); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "usage"},
		{[]string{"nosuch"}, 2, "usage"},
		{[]string{"up", "--nosuch"}, 2, "-nosuch"},
		{[]string{"up", "surplus"}, 2, "usage"},
		{[]string{"up", "--link", "fast"}, 2, "fast"},
		{[]string{"up", "--uplink", "h1"}, 2, "want HOST=RATE"},
		{[]string{"up", "--uplink", "h1=1bit"}, 2, "1bit"},
		{[]string{"up", "--dir", dir, "--hosts", "0"}, 1, "1 to 250 hosts"},
		{[]string{"up", "--dir", dir, "--hosts", "300"}, 1, "1 to 250 hosts"},
		{[]string{"up", "--dir", dir, "--downlink", "h9=1mbit"}, 1, "no such host"},
		{[]string{"run", "--dir", dir, "h1", "true"}, 2, "usage"},
		{[]string{"run", "--dir", dir, "h1", "--", "true"}, 1, "labctl up"},
		{[]string{"down", "--dir", dir, "a", "b"}, 2, "usage"},
		{[]string{"ls", "--dir"}, 2, "-dir"},
	} {
		code, out, errors := labctl(t, "", c.args...)
		if code != c.code || !strings.Contains(errors, c.want) || out != "" {
			t.Errorf("%v: %d, %q, %q", c.args, code, out, errors)
		}
	}
	if code, out, errors := labctl(t, "", "up", "--help"); code != 0 || !strings.Contains(out, "congestion") || errors != "" {
		t.Errorf("help: %d, %q, %q", code, out, errors)
	}
}
