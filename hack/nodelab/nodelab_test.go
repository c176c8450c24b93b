package nodelab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/hack/containerdtest"
)

const hello = `package main

import "fmt"

func main() { fmt.Println("ready") }
`

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestStarts runs a small image end to end, with both snapshotters, cold and warm.
func TestStarts(t *testing.T) {
	program, err := containerdtest.BuildProgram(t.Context(), t.TempDir(), hello)
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	image, err := containerdtest.Image([]string{"/bin/hello"}, map[string][]byte{"bin/hello": binary}, map[string][]byte{"etc/two": []byte("2")})
	if err != nil {
		t.Fatal(err)
	}
	lab, err := Start(t.Context(), Config{Xylem: xylem(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	dir, storage := lab.dir, lab.storage
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
		for _, d := range []string{dir, storage} {
			if _, err := os.Stat(d); !os.IsNotExist(err) {
				t.Errorf("%s is left: %v", d, err)
			}
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), filepath.Base(dir)) {
			t.Errorf("mounts are left: %v", err)
		}
	}()
	ref, err := lab.Push(t.Context(), "hello:1", image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Convert(t.Context(), ref, "--push"); err != nil {
		t.Fatal(err)
	}
	measured, err := lab.CompareStarts(t.Context(), 2, nil, Contender{Overlayfs, ref}, Contender{Xylem, ref})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range measured {
		if len(m.Cold) != 2 || len(m.Warm) != 2 || m.Cold[0] <= 0 || m.Warm[0] <= 0 || len(m.Fetched) != 2*i {
			t.Errorf("contender %d: %+v", i, m)
		}
	}
}

// xylem is the binary under test.
func xylem() string {
	if path := os.Getenv("XYLEM"); path != "" {
		return path
	}
	return "../../bin/xylem"
}
