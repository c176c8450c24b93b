package metadata

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/blockfmt"
)

// parseLayer makes a tree of lines: "path/" a directory, "~path/" an implicit one, "!path/" an opaque one, "-path" a whiteout,
// "path" a file, "path -> target" a symlink, "path = other" a hard link in the layer, "path => other" one to a lower layer.
// A mark (the mtime) after "@" tells inodes apart.
func parseLayer(t *testing.T, lines ...string) *Tree {
	t.Helper()
	tree := &Tree{Root: with(directory(map[string]*Inode{}), func(in *Inode) { in.Implicit, in.Mtime = true, 0 })}
	for _, line := range lines {
		line, mark, _ := strings.Cut(line, "@")
		in := new(Inode)
		fmt.Sscan(mark, &in.Mtime)
		path, rest, kind := line, "", "file"
		for _, k := range []string{" -> ", " => ", " = "} {
			if before, after, ok := strings.Cut(line, k); ok {
				path, rest, kind = before, after, k
			}
		}
		switch {
		case kind == " -> ":
			in.Mode, in.Target = TypeSymlink|0o777, rest
		case kind == " => ":
			in.Mode, in.LinkTo = TypeFile, rest
		case kind == " = ":
			in = tree.Lookup(rest)
		case strings.HasPrefix(path, "-"):
			path, in.Mode = path[1:], TypeChar
		case strings.HasSuffix(path, "/"):
			in.Mode, in.Entries = TypeDir|0o755, make(map[string]*Inode)
			in.Implicit = strings.HasPrefix(path, "~")
			if strings.HasPrefix(path, "!") {
				in.Xattrs = map[string]string{xattrOpaque: "y"}
			}
			path = strings.Trim(path, "~!/")
		default:
			in.Mode = TypeFile | 0o644
		}
		if path == "." {
			in.Entries = tree.Root.Entries
			tree.Root = in
			continue
		}
		tree.Lookup(filepath.Dir(path)[:max(strings.LastIndex(path, "/"), 0)]).Entries[filepath.Base(path)] = in
	}
	return tree
}

// formatTree is the inverse of parseLayer for merged trees, sorted.
func formatTree(tree *Tree) []string {
	var lines []string
	first := make(map[*Inode]string)
	_ = tree.Walk(func(path string, in *Inode) error {
		switch {
		case path == "":
			path = "."
		case first[in] != "":
			lines = append(lines, path+" = "+first[in])
			return nil
		}
		first[in] = path
		if in.IsDir() {
			path += "/"
		} else if in.Target != "" {
			path += " -> " + in.Target
		}
		if in.Mtime != 0 {
			path += fmt.Sprint("@", in.Mtime)
		}
		if len(in.Xattrs) > 0 || in.Implicit || in.LinkTo != "" || in.IsWhiteout() {
			path += " with what should be gone"
		}
		lines = append(lines, path)
		return nil
	})
	return lines
}

func TestMerge(t *testing.T) {
	type lines = []string
	for name, test := range map[string]struct {
		layers []lines
		want   lines
	}{
		"nothing":              {nil, lines{"./"}},
		"one":                  {[]lines{{"a@1", "d/@2", "d/b@3"}}, lines{"./", "a@1", "d/@2", "d/b@3"}},
		"upper replaces":       {[]lines{{"a@1"}, {"a@2"}}, lines{"./", "a@2"}},
		"directories merge":    {[]lines{{"d/@1", "d/a@2"}, {"d/@3", "d/b@4"}}, lines{"./", "d/@3", "d/a@2", "d/b@4"}},
		"implicit directory":   {[]lines{{"d/@1", "d/a@2"}, {"~d/@3", "d/b@4"}}, lines{"./", "d/@1", "d/a@2", "d/b@4"}},
		"implicit alone":       {[]lines{{}, {"~d/@3", "d/b@4"}}, lines{"./", "d/@3", "d/b@4"}},
		"implicit then real":   {[]lines{{"~d/@1"}, {"d/@2"}, {"~d/@3"}}, lines{"./", "d/@2"}},
		"root of the bottom":   {[]lines{{"./@1"}, {"a@2"}}, lines{"./@1", "a@2"}},
		"root of the top":      {[]lines{{"./@1", "b@4"}, {"a@2", "./@3"}}, lines{"./@3", "a@2", "b@4"}},
		"opaque root":          {[]lines{{"./@1", "b@4"}, {"!./@3", "a@2"}}, lines{"./@3", "a@2"}},
		"whiteout":             {[]lines{{"a@1", "d/@1", "d/b@1", "d/c@1"}, {"-a", "~d/", "-d/b"}}, lines{"./", "d/@1", "d/c@1"}},
		"whiteout of a dir":    {[]lines{{"d/@1", "d/b@1"}, {"-d"}, {"~d/@2", "d/c@2"}}, lines{"./", "d/@2", "d/c@2"}},
		"whiteout of nothing":  {[]lines{{"a@1", "-z"}, {"-x", "~d/@1", "-d/y"}}, lines{"./", "a@1", "d/@1"}},
		"opaque":               {[]lines{{"d/@1", "d/a@1", "d/e/@1", "d/e/f@1"}, {"!d/@2", "d/b@2"}}, lines{"./", "d/@2", "d/b@2"}},
		"opaque alone":         {[]lines{{}, {"!d/@2", "d/b@2"}}, lines{"./", "d/@2", "d/b@2"}},
		"opaque in the middle": {[]lines{{"d/@1", "d/a@1"}, {"!d/@2"}, {"d/@3", "d/c@3"}}, lines{"./", "d/@3", "d/c@3"}},
		"file, dir and back":   {[]lines{{"x@1"}, {"x/@2", "x/a@2"}, {"x@3"}, {"x/@4", "x/b@4"}}, lines{"./", "x/@4", "x/b@4"}},
		"dir, file and back":   {[]lines{{"x/@1", "x/a@1"}, {"x@2"}, {"x/@3"}}, lines{"./", "x/@3"}},
		"dir over symlink":     {[]lines{{"y/@1", "y/a@1", "x -> y@1"}, {"x/@2", "x/b@2"}}, lines{"./", "x/@2", "x/b@2", "y/@1", "y/a@1"}},
		"symlink over dir":     {[]lines{{"y/@1", "x/@1", "x/a@1"}, {"x -> y@2"}}, lines{"./", "x -> y@2", "y/@1"}},

		"link in a layer":        {[]lines{{"a@1", "d/@1", "d/b = a", "c = a"}}, lines{"./", "a@1", "c = a", "d/@1", "d/b = a"}},
		"link replaced":          {[]lines{{"a@1", "b = a", "c = a"}, {"b@2"}}, lines{"./", "a@1", "b@2", "c = a"}},
		"link to lower":          {[]lines{{"d/@1", "d/a@1"}, {"b => d/a", "c => /d//./a"}}, lines{"./", "b@1", "c = b", "d/@1", "d/a = b"}},
		"link to replaced":       {[]lines{{"a@1"}, {"a@2", "b => a"}}, lines{"./", "a@2", "b@1"}},
		"link to deleted":        {[]lines{{"a@1"}, {"-a", "b => a"}}, lines{"./", "b@1"}},
		"link to this layer":     {[]lines{{}, {"a@1", "b => a"}}, lines{"./", "a@1", "b = a"}},
		"link to itself":         {[]lines{{"a@1"}, {"a => a"}}, lines{"./", "a@1"}},
		"links swap":             {[]lines{{"a@1", "b@2"}, {"a => b", "b => a"}}, lines{"./", "a@2", "b@1"}},
		"link over dir":          {[]lines{{"a@1", "d/", "d/x"}, {"d => a"}}, lines{"./", "a@1", "d = a"}},
		"link to symlink":        {[]lines{{"a -> x@1"}, {"b => a"}}, lines{"./", "a -> x@1", "b = a"}},
		"link through symlink":   {[]lines{{"d/@1", "d/a@1", "l -> d@1"}, {"b => l/a"}}, lines{"./", "b@1", "d/@1", "d/a = b", "l -> d@1"}},
		"link through a link up": {[]lines{{"d/@1", "d/l -> ../../../e@1", "e/@1", "e/a@1"}, {"b => d/l/a"}}, lines{"./", "b@1", "d/@1", "d/l -> ../../../e@1", "e/@1", "e/a = b"}},
		"one link many layers":   {[]lines{{"a@1"}, {"b => a"}, {"c => b", "-a"}}, lines{"./", "b@1", "c = b"}},

		"implicit over symlink":  {[]lines{{"usr/@1", "usr/lib/@1", "usr/lib/a@1", "lib -> usr/lib@1"}, {"~lib/@2", "lib/b@2", "-lib/a"}}, lines{"./", "lib -> usr/lib@1", "usr/@1", "usr/lib/@1", "usr/lib/b@2"}},
		"implicit over absolute": {[]lines{{"usr/@1", "l -> /usr@1"}, {"~l/", "~l/m/@2", "l/m/b@2"}}, lines{"./", "l -> /usr@1", "usr/@1", "usr/m/@2", "usr/m/b@2"}},
		"implicit over dangling": {[]lines{{"l -> x/y@1"}, {"~l/", "l/b@2"}}, lines{"./", "l -> x/y@1", "x/", "x/y/", "x/y/b@2"}},
		"implicit over chain":    {[]lines{{"a/@1", "k -> a@1", "l -> k@1"}, {"~l/", "l/b@2", "~k/", "k/c@2"}}, lines{"./", "a/@1", "a/b@2", "a/c@2", "k -> a@1", "l -> k@1"}},
		"implicit twice":         {[]lines{{"a/@1", "a/k -> .@1", "l -> a@1"}, {"~l/", "~l/k/", "l/k/b@2"}}, lines{"./", "a/@1", "a/b@2", "a/k -> .@1", "l -> a@1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []*Tree
			for _, l := range test.layers {
				layers = append(layers, parseLayer(t, l...))
			}
			merged, err := Merge(layers)
			if err != nil {
				t.Fatal(err)
			}
			sameLines(t, formatTree(merged), test.want)
			encode(t, merged)
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	for name, layers := range map[string][]*Tree{
		"no root":                  {{}},
		"link to nothing":          {parseLayer(t, "a"), parseLayer(t, "b => c")},
		"link to nothing below":    {parseLayer(t, "a => b"), parseLayer(t, "b")},
		"link to a directory":      {parseLayer(t, "d/"), parseLayer(t, "b => d")},
		"link to the root":         {parseLayer(t, "b => ..")},
		"link through a file":      {parseLayer(t, "a"), parseLayer(t, "b => a/c")},
		"link through a loop":      {parseLayer(t, "l -> l"), parseLayer(t, "b => l/c")},
		"directory through a file": {parseLayer(t, "a", "l -> a"), parseLayer(t, "~l/", "l/b")},
		"directory through a loop": {parseLayer(t, "l -> k", "k -> l"), parseLayer(t, "~l/", "l/b")},
		"another layer's device":   {{Root: directory(map[string]*Inode{"x": file(1, Extent{0, 1, 0, 0})})}, {Root: directory(nil), Devices: devices(1)}},
	} {
		if _, err := Merge(layers); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMergeKeepsItsInputs(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) *Tree { return drawTree(t, "layer", true) })
	rapid.Check(t, func(t *rapid.T) {
		layers := rapid.SliceOfN(draw, 1, 4).Draw(t, "layers")
		var before []string
		for _, l := range layers {
			before = append(before, dump(l)...)
		}
		one, err := Merge(layers)
		if err != nil {
			t.Fatal(err)
		}
		two, err := Merge(layers)
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, one, two)
		var after []string
		for _, l := range layers {
			after = append(after, dump(l)...)
		}
		sameLines(t, after, before)
	})
}

// TestMergeIsWhatOverlayShows lays random layers over each other with overlayfs and compares that with the merged tree, and
// with the merged image mounted over all their devices.
func TestMergeIsWhatOverlayShows(t *testing.T) {
	dir := t.TempDir()
	paths := func(name string) (string, string) {
		files := mustMkdir(t, filepath.Join(dir, name))
		return files, mustMkdir(t, filepath.Join(files, "mnt"))
	}
	const most = 4
	var files, mounts [most + 1]string
	for i := range files {
		files[i], mounts[i] = paths(fmt.Sprint("layer", i))
	}
	_, overlay := paths("overlay")
	rapid.Check(t, func(t *rapid.T) {
		all := &world{image: filepath.Join(dir, "merged.erofs")}
		var layers []*Tree
		var options [][2]string
		for i := range rapid.IntRange(2, most).Draw(t, "layers") {
			layers = append(layers, drawTree(t, "layer", true))
			delete(layers[i].Root.Xattrs, xattrOpaque) // which overlayfs overlooks on the root of a layer
			w := newLayerWorld(t, files[i], layers[i], len(all.devices))
			all.devices = append(all.devices, w.devices...)
			options = slices.Insert(options, 0, [2]string{"lowerdir+", w.mount(t, mounts[i])})
		}
		mountFS(t, "overlay", options, overlay)
		merged, err := Merge(layers)
		if err != nil {
			t.Fatal(err)
		}
		sameLines(t, treeLines(merged), mountedLines(t, overlay, ""))
		all.tree = merged
		writeFile(t, all.image, encode(t, merged))
		checkMounted(t, all.mount(t, mounts[most]), merged)
	})
}

// treeLines describes a tree without regard to hard links, which overlayfs shows as they are in the layers.
func treeLines(tree *Tree) []string {
	var lines []string
	_ = tree.Walk(func(path string, in *Inode) error {
		sum := sha256.Sum256(fileBytes(in, 0, in.Size))
		lines = append(lines, fmt.Sprintf("%q %s %q %.8x %v", path, describeInode(in, 0), in.Target, sum, in.Xattrs))
		return nil
	})
	return lines
}

func mountedLines(t tester, dir, path string) []string {
	t.Helper()
	full := filepath.Join(dir, path)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err == unix.ENOENT {
		return nil // overlayfs lists the whiteouts of a directory that is in one layer only
	} else if err != nil {
		t.Fatalf("%v", err)
	}
	st.Nlink = 0
	in := &Inode{Mode: st.Mode}
	var content []byte
	var err error
	switch in.Mode & TypeMask {
	case TypeFile:
		content, err = os.ReadFile(full)
	case TypeSymlink:
		in.Target, err = os.Readlink(full)
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	sum := sha256.Sum256(content)
	lines := []string{fmt.Sprintf("%q %s %q %.8x %v", path, describeStat(in, st), in.Target, sum, readXattrs(t, full))}
	if in.IsDir() {
		entries, err := os.ReadDir(full)
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, e := range entries {
			lines = append(lines, mountedLines(t, dir, join(path, e.Name()))...)
		}
	}
	return lines
}
