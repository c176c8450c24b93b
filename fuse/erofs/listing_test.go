package erofs_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/blockfmt/metadata"
)

// listEnv makes the test binary list a tree instead of testing: trees are read by a child process, as containers do.
const listEnv = "XYLEM_LIST_TREE"

func TestMain(m *testing.M) {
	if root := os.Getenv(listEnv); root != "" {
		if err := printListing(os.Stdout, root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv(randomEnv); path != "" {
		if err := readRandomly(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// item is everything that a reader can learn about a name of a tree.
type item struct {
	Path       string // Go-quoted, because names need not be UTF-8
	Mode       uint32
	UID, GID   uint32
	Nlink      uint64
	Size       int64 // 0 for directories
	Mtime      int64
	MtimeNsec  int64
	Rdev       uint64
	SameAs     string // the first path, in order, of the same inode
	Target     string
	Xattrs     map[string]string
	Content    string // SHA-256
	Blocks512  int64  // 0 for directories
	EntryType  string // as the directory says
	EntryCount int
}

// maxContent bounds the size of files whose content is compared.
const maxContent = 1 << 30

func printListing(w io.Writer, root string) error {
	enc := json.NewEncoder(w)
	first := map[uint64]string{}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		it, err := inspect(path, first)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		it.Path, it.EntryType = fmt.Sprintf("%q", name), d.Type().String()
		if it.SameAs == path {
			it.SameAs = name
		}
		it.SameAs = fmt.Sprintf("%q", strings.TrimPrefix(it.SameAs, root+"/"))
		return enc.Encode(it)
	})
}

func inspect(path string, first map[uint64]string) (item, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return item{}, err
	}
	if first[st.Ino] == "" {
		first[st.Ino] = path
	}
	it := item{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Mtime: st.Mtim.Sec, MtimeNsec: st.Mtim.Nsec,
		Rdev: st.Rdev, SameAs: first[st.Ino], Size: st.Size, Blocks512: st.Blocks, Xattrs: map[string]string{}}
	err := readXattrs(path, it.Xattrs)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		var entries []os.DirEntry
		entries, err = os.ReadDir(path)
		it.Size, it.Blocks512, it.EntryCount = 0, 0, len(entries)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		it.Target, err = os.Readlink(path)
	case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size < maxContent:
		it.Content, err = sumFile(path)
	}
	return it, err
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func readXattrs(path string, xattrs map[string]string) error {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		xattrs[name] = fmt.Sprintf("%x", value[:n])
	}
	return nil
}

// list lists a mounted tree from a child process.
func list(t testing.TB, root string) []item {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), listEnv+"="+root)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list %s: %v: %s", root, err, stderr.String())
	}
	var items []item
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var it item
		if err := dec.Decode(&it); err == io.EOF {
			return items
		} else if err != nil {
			t.Fatal(err)
		}
		items = append(items, it)
	}
}

// expect returns the listing that follows from the image's tree alone.
func (im *image) expect() []item {
	links, first := map[*metadata.Inode]uint64{}, map[*metadata.Inode]string{}
	var items []item
	var inodes []*metadata.Inode
	var walk func(path string, in *metadata.Inode)
	walk = func(path string, in *metadata.Inode) {
		links[in]++
		if first[in] == "" {
			first[in] = path
		}
		items, inodes = append(items, im.describe(path, in, first[in])), append(inodes, in)
		for _, name := range slices.Sorted(maps.Keys(in.Entries)) {
			walk(strings.TrimPrefix(path+"/"+name, "./"), in.Entries[name])
			if in.Entries[name].IsDir() {
				links[in]++
			}
		}
		if in.IsDir() {
			links[in]++
		}
	}
	walk(".", im.tree.Root)
	for i, in := range inodes {
		items[i].Nlink = links[in]
	}
	return items
}

func (im *image) describe(path string, in *metadata.Inode, first string) item {
	it := item{Path: fmt.Sprintf("%q", path), Mode: in.Mode, UID: in.UID, GID: in.GID, Mtime: in.Mtime, MtimeNsec: int64(in.MtimeNsec),
		Rdev: unix.Mkdev(in.Major, in.Minor), SameAs: fmt.Sprintf("%q", first), Target: in.Target, Xattrs: map[string]string{}, EntryCount: len(in.Entries)}
	for name, value := range in.Xattrs {
		it.Xattrs[name] = fmt.Sprintf("%x", value)
	}
	types := map[uint32]fs.FileMode{metadata.TypeDir: fs.ModeDir, metadata.TypeSymlink: fs.ModeSymlink, metadata.TypeFifo: fs.ModeNamedPipe,
		metadata.TypeSocket: fs.ModeSocket, metadata.TypeBlock: fs.ModeDevice, metadata.TypeChar: fs.ModeDevice | fs.ModeCharDevice}
	it.EntryType = types[in.Mode&metadata.TypeMask].String()
	switch in.Mode & metadata.TypeMask {
	case metadata.TypeSymlink:
		it.Size = int64(len(in.Target))
	case metadata.TypeFile:
		it.Size = in.Size
		if in.Size < maxContent {
			it.Content = fmt.Sprintf("%x", sha256.Sum256(im.content(in)))
		}
	}
	it.Blocks512 = (it.Size + 4095) / 4096 * 8
	return it
}

// assertListing compares what a mount shows with what it should.
func assertListing(t testing.TB, got, want []item) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	differences := 0
	for i := range min(len(got), len(want)) {
		if g, w := fmt.Sprintf("%+v", got[i]), fmt.Sprintf("%+v", want[i]); g != w {
			t.Errorf("differs:\n got %s\nwant %s", g, w)
			if differences++; differences > 5 {
				t.FailNow()
			}
		}
	}
}
