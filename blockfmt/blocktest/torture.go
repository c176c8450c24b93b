package blocktest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// A TortureLayer is a layer of an image that holds what is hard to get right, as an uncompressed tar archive. Everything
// in it can be unpacked by containerd onto overlayfs on ext4, so the result can be compared with that.
type TortureLayer struct {
	Name  string
	Write func(w io.Writer) error // the same bytes every time
}

// TortureLayers returns the layers of the torture image, bottom up: everything that can be in a layer, two layers that
// change it in every way, and one with a sparse file of 5 GiB.
//
// Two things to know when comparing: overlayfs shows the link count of linked/a as 3 although the layers above the first hide
// its other names, and the times of some directories are those of unpacking (TortureImplied).
//
// Its device nodes, owners and attributes in "security." need root to be unpacked.
func TortureLayers() []TortureLayer {
	return []TortureLayer{
		{"base", func(w io.Writer) error { return writeTar(w, tortureBase) }},
		{"change", func(w io.Writer) error { return writeTar(w, tortureChange) }},
		{"back", func(w io.Writer) error { return writeTar(w, tortureBack) }},
		{"sparse", writeSparse},
	}
}

// TortureSparse is the path of the torture image's sparse file, TortureSparseSize its size in bytes. It holds TortureSparseData
// at TortureSparseOffsets and zeros elsewhere.
const (
	TortureSparse     = "huge/sparse"
	TortureSparseSize = 5 << 30
	TortureSparseData = "data within five gibibytes of nothing\n"
)

// TortureSparseOffsets are where the sparse file's data begin: at its start, across 4 GiB, at its end.
var TortureSparseOffsets = []int64{0, 1<<32 - 7, TortureSparseSize - int64(len(TortureSparseData))}

// TortureImplied says whether some layer of the torture image contains a directory only as the parent of something else. The
// time of such a directory is that of unpacking, in that layer and those above it. The root, "", is one of them.
func TortureImplied(path string) bool {
	switch path {
	case "", "missing", "missing/par", "missing/par/ents", "absolute", "confined", "dotted", "resolved", "aufs", "linked", "deleted", "opaque", "merged",
		"merged/nested", "deleted-with-parent", "deleted-with-parent/nested", "attributes", "attributes/sub", "huge", "long":
		return true
	}
	return strings.HasPrefix(path, "long/") && !strings.HasSuffix(path, "/leaf")
}

// torture collects a layer's entries. The first error stays.
type torture struct {
	tw  *tar.Writer
	err error
}

func writeTar(w io.Writer, fill func(*torture)) error {
	t := &torture{tw: tar.NewWriter(w)}
	fill(t)
	if t.err != nil {
		return t.err
	}
	return t.tw.Close()
}

var tortureTime = time.Unix(1_700_000_001, 987_654_321)

// with changes the header of an entry before it is written.
type with func(*tar.Header)

func mode(m int64) with          { return func(h *tar.Header) { h.Mode = m } }
func owner(uid, gid int) with    { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }
func modified(t time.Time) with  { return func(h *tar.Header) { h.ModTime = t } }
func format(f tar.Format) with   { return func(h *tar.Header) { h.Format = f } }
func device(maj, min int64) with { return func(h *tar.Header) { h.Devmajor, h.Devminor = maj, min } }

func xattr(name, value string) with {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func (t *torture) entry(kind byte, name, link, data string, changes ...with) {
	h := &tar.Header{Typeflag: kind, Name: name, Linkname: link, Size: int64(len(data)), Mode: 0o644, ModTime: tortureTime, Format: tar.FormatPAX}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, change := range changes {
		change(h)
	}
	if t.err != nil {
		return
	}
	if t.err = t.tw.WriteHeader(h); t.err == nil {
		_, t.err = io.WriteString(t.tw, data)
	}
	if t.err != nil {
		t.err = fmt.Errorf("entry %q: %w", name, t.err)
	}
}

func (t *torture) file(name, data string, changes ...with) {
	t.entry(tar.TypeReg, name, "", data, changes...)
}
func (t *torture) dir(name string, changes ...with) { t.entry(tar.TypeDir, name, "", "", changes...) }
func (t *torture) symlink(name, target string, changes ...with) {
	t.entry(tar.TypeSymlink, name, target, "", changes...)
}
func (t *torture) hardlink(name, target string, changes ...with) {
	t.entry(tar.TypeLink, name, target, "", changes...)
}
func (t *torture) whiteout(name string) { t.file(name, "", mode(0)) }

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// capability is a security.capability attribute: cap_net_raw+ep, revision 2, or revision 3 of a user namespace.
func capability(revision byte) string {
	v := "\x01\x00\x00" + string(rune(revision)) + "\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	if revision == 3 {
		v += "\xe8\x03\x00\x00"
	}
	return v
}

func tortureBase(t *torture) {
	t.dir("./", mode(0o700), owner(7, 7))
	t.files()
	t.owners()
	t.names()
	t.links()
	t.attributes()
	t.special()
	t.paths()
	t.crowd()
	t.victims()
}

// files: sizes around every boundary, holes, the same content twice.
func (t *torture) files() {
	t.dir("sizes/")
	for i, n := range []int{0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 524287, 524288, 524289, 1<<20 + 12345} {
		t.file(fmt.Sprintf("sizes/%d", n), noise(uint64(i), n))
	}
	t.file("sizes/same-a", noise(100, 70000))
	t.file("sizes/same-b", noise(100, 70000), mode(0o600))
	t.file("sizes/zeros", strings.Repeat("\x00", 300_001))
	hole := strings.Repeat("\x00", 200_000)
	t.file("sizes/hole-middle", noise(101, 65536)+hole+noise(102, 5000))
	t.file("sizes/hole-start", hole+noise(103, 9999))
	t.file("sizes/hole-end", noise(104, 10)+hole)
}

func (t *torture) owners() {
	t.dir("modes/")
	for _, m := range []int64{0, 0o111, 0o1644, 0o2755, 0o4755, 0o6755, 0o7777} {
		t.file(fmt.Sprintf("modes/%04o", m), "mode\n", mode(m))
		t.dir(fmt.Sprintf("modes/dir-%04o/", m), mode(m))
	}
	for i, id := range []int{0, 65534, 65535, 65536, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 2} {
		t.file(fmt.Sprintf("modes/owner-%d", i), "owner\n", owner(id, id-id%3))
	}
	for i, at := range []time.Time{
		time.Unix(0, 0), time.Unix(-1, 0), time.Unix(1, 999_999_999), time.Unix(1<<31, 1), time.Unix(1<<32+5, 7), time.Unix(1<<33, 0), time.Unix(1<<34, 5),
	} {
		t.file(fmt.Sprintf("modes/time-%d", i), "time\n", modified(at))
		t.dir(fmt.Sprintf("modes/time-dir-%d/", i), modified(at))
	}
}

func (t *torture) names() {
	t.dir("names/")
	for _, name := range []string{
		strings.Repeat("n", 255), strings.Repeat("é", 127), "\xff\xfe\x80", "new\nline", "tab\t", "quote\"'`", "back\\slash", " space ", "...", "..x", ".hidden",
		"😀", "-dash", "*?[", "a:b", "\x01\x7f", "wh.ere", ".w", "CASE", "case",
	} {
		t.file("names/"+name, "name "+name+"\n")
	}
	deep := "long/" + strings.Repeat(strings.Repeat("d", 98)+"/", 30)
	t.file(deep+"leaf", "deep\n")
	t.file("names/"+strings.Repeat("g", 120)+"/gnu", "gnu long name\n", format(tar.FormatGNU), modified(time.Unix(1_600_000_000, 0)))
	t.dir("names/" + strings.Repeat("g", 120) + "/")
}

func (t *torture) links() {
	for _, d := range []string{"links/", "links/a/", "links/b/", "links/b/c/"} {
		t.dir(d)
	}
	t.file("links/a/one", noise(200, 5000))
	t.hardlink("links/b/two", "links/a/one")
	t.hardlink("./links/b/c/three", "./links/a/one")
	t.hardlink("links/four", "/links/b/two", mode(0o4711), owner(12, 13)) // its header counts for all names
	t.file("links/replaced", "first")
	t.hardlink("links/keeps-first", "links/replaced")
	t.file("links/replaced", "second")
	t.symlink("links/relative", "a/one", owner(5, 6))
	t.symlink("links/absolute", "/links/a/one")
	t.symlink("links/dangling", "nowhere/at/all")
	t.symlink("links/loop", "loop")
	t.symlink("links/far", strings.Repeat("../x/", 700)+"end")
	t.symlink("links/bytes", "\xff\x80 \n")
	t.hardlink("links/to-symlink", "links/relative")
}

func (t *torture) attributes() {
	t.dir("xattrs/", xattr("user.dir", "on a directory"))
	for n := range 14 {
		name := fmt.Sprintf("xattrs/%d", n)
		t.file(name, noise(300+uint64(n), 100+n), xattr("user."+strings.Repeat("k", n+1), strings.Repeat("v", n)))
	}
	t.file("xattrs/cap2", "#!/bin/sh\n", mode(0o755), xattr("security.capability", capability(2)))
	t.file("xattrs/cap3", noise(320, 9000), mode(0o755), xattr("security.capability", capability(3)), xattr("user.x", "odd"))
	t.file("xattrs/binary", "", xattr("user.binary", "\x00\x01\xff\x00"), xattr("user.newline", "a\nb=c"))
	t.file("xattrs/large", "large\n", xattr("user.large", noise(321, 2001)))
	var many []with
	for i := range 40 {
		many = append(many, xattr(fmt.Sprintf("user.many.%02d", i), strings.Repeat("m", i%5)))
	}
	t.file("xattrs/many", "many\n", many...)
	t.file("xattrs/shared-a", "a", xattr("user.shared", strings.Repeat("s", 301)))
	t.file("xattrs/shared-b", "b", xattr("user.shared", strings.Repeat("s", 301)))
	t.file("xattrs/ignored", "", xattr("trusted.overlay.opaque", "y"), xattr("trusted.other", "x"))
	t.symlink("xattrs/symlink", "ignored", xattr("user.ignored", "x"), xattr("security.kept", "y"))
	t.hardlink("xattrs/added", "xattrs/0", xattr("user.by-link", "added by the link's header"))
}

func (t *torture) special() {
	t.dir("special/")
	t.entry(tar.TypeChar, "special/null", "", "", device(1, 3), mode(0o666))
	t.entry(tar.TypeBlock, "special/loop", "", "", device(7, 200), owner(0, 6))
	t.entry(tar.TypeChar, "special/large", "", "", device(4095, 1<<20-1))
	t.entry(tar.TypeFifo, "special/fifo", "", "", mode(0o620), xattr("security.on-fifo", "f"))
	t.hardlink("special/fifo-again", "special/fifo")
	t.hardlink("special/null-again", "special/null")
}

func (t *torture) paths() {
	t.file("missing/par/ents/file", "no entries for its parents\n")
	t.file("./prefixed", "with dot and slash\n")
	t.file("/absolute/file", "with a slash\n")
	t.file("../../confined/file", "with dots\n")
	t.file("undotted/../dotted/file", "dots within\n")
	t.dir("resolved-dir/")
	t.symlink("resolved-link", "resolved-dir")
	t.symlink("resolved-absolute", "/resolved-dir")
	t.symlink("resolved-escape", "../../../resolved")
	t.file("resolved-link/through", "through a link\n")
	t.file("resolved-absolute/rooted", "through an absolute link\n")
	t.file("resolved-escape/kept", "through a link that points out\n")
	t.file("duplicate", "first\n")
	t.file("duplicate", "second, longer\n", mode(0o600))
	t.dir("duplicate-dir/", mode(0o700))
	t.file("duplicate-dir/file", "kept\n")
	t.dir("duplicate-dir/", mode(0o711), owner(3, 4), modified(time.Unix(1_500_000_000, 5)))
	t.dir("turned/", modified(time.Unix(1_400_000_000, 9)))
	t.file("turned/child", "gone\n")
	t.file("turned", "a file after all, with the directory's time\n")
	t.file("unturned", "a file\n")
	t.dir("unturned/")
	t.file("unturned/child", "a directory after all\n")
}

// crowd is a directory of 20,000 files, most of equal content.
func (t *torture) crowd() {
	t.dir("crowd/")
	for i := range 20_000 {
		t.file(fmt.Sprintf("crowd/%05d-%s", i, strings.Repeat("x", i%40)), strings.Repeat("c", i%17))
	}
}

// victims is what the layers above change.
func (t *torture) victims() {
	for _, name := range []string{"kind-dir", "deleted", "deleted-with-parent", "opaque", "opaque-empty", "opaque-late", "dir-to-symlink", "attributes", "attributes/sub", "merged", "readded"} {
		t.dir(name+"/", mode(0o750), owner(70, 71), xattr("user.victim", name))
		t.file(name+"/child", "of "+name+"\n")
		t.dir(name+"/nested/", mode(0o705))
		t.file(name+"/nested/leaf", "leaf of "+name+"\n")
	}
	for _, name := range []string{"kind-file", "deleted-file", "readded-file", "to-link", "aufs/left"} {
		t.file(name, "lower "+name+"\n")
	}
	t.symlink("symlink-to-dir", "merged")
	t.symlink("symlink-to-file", "kind-file")
	t.dir("linked/")
	t.file("linked/a", noise(400, 8000))
	t.hardlink("linked/b", "linked/a")
	t.hardlink("linked/c", "linked/a")
}

func tortureChange(t *torture) {
	t.dir("kind-file/", mode(0o711))
	t.file("kind-file/inside", "a directory where a file was\n")
	t.file("kind-dir", "a file where a directory was\n")
	t.whiteout(".wh.deleted")
	t.whiteout(".wh.deleted-file")
	t.whiteout("deleted-with-parent/nested/.wh.leaf")
	t.dir("opaque/", mode(0o755))
	t.whiteout("opaque/.wh..wh..opq")
	t.file("opaque/fresh", "behind an opaque directory\n")
	t.dir("opaque-empty/")
	t.whiteout("opaque-empty/.wh..wh..opq")
	t.dir("opaque-late/")
	t.file("opaque-late/before", "before the marker\n")
	t.whiteout("opaque-late/.wh..wh..opq")
	t.whiteout(".wh.readded-file")
	t.file("readded-file", "deleted and made again\n")
	t.whiteout(".wh.readded")
	t.dir("readded/", mode(0o701))
	t.file("readded/anew", "in a directory deleted and made again\n")
	t.whiteout("aufs/.wh..wh.plnk")
	t.whiteout("aufs/.wh..wh.aufs")
	t.symlink("dir-to-symlink", "merged")
	t.dir("symlink-to-dir/")
	t.file("symlink-to-dir/own", "no link any more\n")
	t.file("symlink-to-file", "no link any more\n")
	t.dir("merged/", mode(0o700), owner(80, 81), xattr("user.upper", "of the upper one"))
	t.file("merged/upper", "beside the lower ones\n")
	t.file("linked/b", "a file of its own\n")
	t.whiteout("linked/.wh.c")
	t.file("linked/new", noise(401, 100))
	t.hardlink("to-link", "linked/new")
	t.dir("crowd/")
	for i := 0; i < 20_000; i += 1000 {
		t.whiteout(fmt.Sprintf("crowd/.wh.%05d-%s", i, strings.Repeat("x", i%40)))
	}
	t.file("crowd/one-more", "one more\n")
}

func tortureBack(t *torture) {
	t.file("kind-file", "a file again\n", mode(0o640))
	t.dir("kind-dir/", mode(0o500))
	t.file("kind-dir/back", "a directory again\n")
	t.file("deleted/again", "its parent has no entry and was deleted\n")
	t.file("attributes/sub/new", "its parents have no entries and keep what they had\n")
	t.file("deleted-file", "back\n")
	t.dir("dir-to-symlink/")
	t.file("dir-to-symlink/now", "a directory again\n")
	t.whiteout("merged/.wh.upper")
	t.whiteout("merged/nested/.wh.leaf")
	t.whiteout("opaque/.wh.fresh")
	t.whiteout(".wh.turned")
	t.file("linked/c", "back, alone\n")
}

// writeSparse writes a layer with the sparse file in the PAX format 1.0 of GNU tar, which archive/tar reads but does not write.
func writeSparse(w io.Writer) error {
	var m strings.Builder
	fmt.Fprintf(&m, "%d\n", len(TortureSparseOffsets))
	for _, off := range TortureSparseOffsets {
		fmt.Fprintf(&m, "%d\n%d\n", off, len(TortureSparseData))
	}
	body := padded(m.String()) + strings.Repeat(TortureSparseData, len(TortureSparseOffsets))
	var records strings.Builder
	for _, r := range [][2]string{
		{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"}, {"GNU.sparse.name", TortureSparse},
		{"GNU.sparse.realsize", fmt.Sprint(int64(TortureSparseSize))}, {"mtime", "1700000000.25"},
	} {
		records.WriteString(paxRecord(r[0], r[1]))
	}
	var b bytes.Buffer
	b.WriteString(tarBlock("PaxHeaders/sparse", 'x', records.Len()) + padded(records.String()))
	b.WriteString(tarBlock("GNUSparseFile/sparse", '0', len(body)) + padded(body))
	b.Write(make([]byte, 1024))
	_, err := w.Write(b.Bytes())
	return err
}

// paxRecord is "LENGTH KEY=VALUE\n", where the length counts itself.
func paxRecord(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	n := len(rest)
	for len(fmt.Sprint(n)) != n-len(rest) {
		n++
	}
	return fmt.Sprint(n) + rest
}

func padded(s string) string { return s + strings.Repeat("\x00", -len(s)&511) }

// tarBlock is a ustar header.
func tarBlock(name string, kind byte, size int) string {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00        ", size, tortureTime.Unix()))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(b)
}
