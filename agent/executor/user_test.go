package executor

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/:/bin/false\nodd:x:y:1::/:\n"
	groups = "root:x:0:\nwww:x:34:\nextra:x:50:web,other\nmore:x:51:other\nbroken:x:y:web\n"
)

func TestLookUp(t *testing.T) {
	for _, c := range []struct {
		name, group string
		want        specs.User
		fails       bool
	}{
		{"web", "", specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{50}}, false},
		{"33", "", specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{50}}, false},
		{"web", "more", specs.User{UID: 33, GID: 51}, false},
		{"web", "77", specs.User{UID: 33, GID: 77}, false},
		{"1000", "", specs.User{UID: 1000}, false},
		{"nobody", "", specs.User{}, true},
		{"odd", "", specs.User{}, true},
		{"web", "nogroup", specs.User{}, true},
	} {
		got, err := lookUp(passwd, groups, c.name, c.group)
		if (err != nil) != c.fails || err == nil && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:%s is %+v, %v", c.name, c.group, got, err)
		}
	}
}

// TestReadInside: links in an image lead to no file of the host.
func TestReadInside(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "etc/real"), []byte("inside"), 0o644))
	must(t, os.Symlink("/etc/real", filepath.Join(dir, "etc/link")))
	must(t, os.Symlink("../../../../../../../../etc/hostname", filepath.Join(dir, "etc/escape")))
	for path, want := range map[string]string{"etc/real": "inside", "etc/link": "inside", "etc/escape": "", "etc/none": ""} {
		if got, err := readInside(t.Context(), dir, path); err != nil || got != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}
