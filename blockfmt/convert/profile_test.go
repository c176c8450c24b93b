package convert_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

func TestProfileLaysOutStartupFirst(t *testing.T) {
	var entries []entry
	want := map[string]string{}
	for i := range 40 {
		name := fmt.Sprintf("f%02d", i)
		want[name] = some(uint64(i), 300_000+i)
		entries = append(entries, file(name, want[name]))
	}
	entries = append(entries, hardlink("link", "f30"), file("copy", want["f31"]))
	want["link"], want["copy"] = want["f30"], want["f31"]
	base, top := archive(t, entries...), archive(t, file("top", some(99, 2<<20)))
	want["top"] = some(99, 2<<20)
	ref := simple(t, base, top)
	low, high := digest.FromBytes(base), digest.FromBytes(top)
	profile := blockfmt.Profile{
		{Layer: high, Path: "top", Offset: 1 << 20, Length: 100},
		{Layer: low, Path: "f39", Offset: 0, Length: 4096},
		{Layer: low, Path: "link", Offset: 100_000, Length: 100_000},
		{Layer: low, Path: "f30", Offset: 150_000, Length: 60_000}, // overlaps the one before, by another name
		{Layer: low, Path: "copy", Offset: 299_000, Length: 1 << 40},
		{Layer: low, Path: "f00", Offset: 0, Length: 300_000},
		{Layer: low, Path: "absent", Offset: 0, Length: 10},
		{Layer: low, Path: "f01", Offset: 1 << 62, Length: 1 << 62},
		{Layer: digest.FromString("another image"), Path: "x", Length: 1},
	}
	plainly := converted(t, ref, convert.Options{})
	r := converted(t, ref, convert.Options{Profile: profile})
	v := viewOf(t, r)
	for path, data := range want {
		if string(v.read(path)) != data {
			t.Errorf("%s differs", path)
		}
	}
	for i, l := range r.Artifact.Layers {
		if l.StartupBlocks != 1 {
			t.Errorf("layer %d: %d startup blocks, want 1", i, l.StartupBlocks)
		}
		if a, b := deviceOf(t, r, l), deviceOf(t, plainly, plainly.Artifact.Layers[i]); len(a) != len(b) || bytes.Equal(a, b) {
			t.Errorf("layer %d: blob of %d bytes, %d without profile, or not rearranged", i, len(a), len(b))
		}
	}
	// The first range of a layer's profile is at the start of its blob.
	if got := deviceOf(t, r, r.Artifact.Layers[0])[:4096]; string(got) != want["f39"][:4096] {
		t.Error("f39 is not first")
	}
	record := recordOf(t, r)
	if len(record) != 2 || record[0] != (blockfmt.BlockPos{Layer: 1}) || record[1] != (blockfmt.BlockPos{Layer: 0}) {
		t.Errorf("record %v", record)
	}
	again := converted(t, ref, convert.Options{Profile: profile, Workers: 3})
	if !bytes.Equal(again.Manifest, r.Manifest) {
		t.Error("differs the second time")
	}
}

func recordOf(t *testing.T, r *convert.Result) blockfmt.Record {
	t.Helper()
	c, err := blockfmt.ParseCompanion(r.Companion, len(r.Artifact.Layers))
	must(t, err)
	if c.Record == nil {
		t.Fatal("no startup record")
	}
	record, err := blockfmt.ParseRecord(blobOf(t, r, *c.Record))
	must(t, err)
	return record
}

func TestProfileChangesItsLayersOnly(t *testing.T) {
	base, top := archive(t, file("a", some(1, 1<<20)), file("b", some(2, 1<<20))), archive(t, file("c", some(3, 1<<20)))
	ref := simple(t, base, top)
	opts := convert.Options{CacheDir: t.TempDir()}
	converted(t, ref, opts)
	opts.Profile = blockfmt.Profile{{Layer: digest.FromBytes(base), Path: "b", Length: 1000}}
	if n := converted(t, ref, opts).Stats.Converted; n != 1 {
		t.Errorf("%d layers converted, want the one in the profile", n)
	}
	if n := converted(t, ref, opts).Stats.Converted; n != 0 {
		t.Errorf("%d layers converted the second time", n)
	}
}

// A file of 5 GiB of nothing costs nothing.
func TestSparseFileCostsNothing(t *testing.T) {
	var b bytes.Buffer
	must(t, sparseLayer(&b))
	r := converted(t, simple(t, b.Bytes()), convert.Options{})
	if r.Stats.RawSize > 1<<20 {
		t.Errorf("blob of %d bytes", r.Stats.RawSize)
	}
	v := viewOf(t, r)
	in := v.inode(blocktest.TortureSparse)
	if in.Size != blocktest.TortureSparseSize || len(in.Extents) != len(blocktest.TortureSparseOffsets) && len(in.Extents) != len(blocktest.TortureSparseOffsets)+1 {
		t.Fatalf("%d bytes in %d extents", in.Size, len(in.Extents))
	}
	at := func(off int64) byte {
		for _, e := range in.Extents {
			if off >= e.FileOffset && off < e.FileOffset+e.Length {
				return v.devices[0][e.DeviceOffset+off-e.FileOffset]
			}
		}
		return 0
	}
	for _, start := range blocktest.TortureSparseOffsets {
		var got strings.Builder
		for i := range len(blocktest.TortureSparseData) {
			got.WriteByte(at(start + int64(i)))
		}
		if got.String() != blocktest.TortureSparseData || start > 0 && at(start-1) != 0 {
			t.Errorf("at %d: %q", start, got.String())
		}
	}
}

func TestDuplicatesAreStoredOnce(t *testing.T) {
	data := some(7, 1<<20)
	var entries []entry
	for i := range 20 {
		entries = append(entries, file(fmt.Sprintf("same-%d", i), data), file(fmt.Sprintf("other-%d", i), some(uint64(i+100), 5000)))
	}
	r := converted(t, simple(t, archive(t, entries...)), convert.Options{})
	if r.Stats.RawSize > 1<<20+20*8192 {
		t.Errorf("%d bytes", r.Stats.RawSize)
	}
	v := viewOf(t, r)
	for i := range 20 {
		if string(v.read(fmt.Sprintf("same-%d", i))) != data || string(v.read(fmt.Sprintf("other-%d", i))) != some(uint64(i+100), 5000) {
			t.Errorf("file %d differs", i)
		}
	}
}

// What containerd refuses, but other builders emit.
func TestLinksToLowerLayersAndWhiteoutsOfOwnEntries(t *testing.T) {
	r := converted(t, simple(t,
		archive(t, file("a/target", "lower"), file("d/lower", "x"), file("e/lower", "x")),
		archive(t, hardlink("b/link", "a/target"), file("d/own", "y"), file(".wh.d", ""), file(".wh.e", ""), file("e/new", "z")),
	), convert.Options{})
	v := viewOf(t, r)
	if v.inode("b/link") != v.inode("a/target") || string(v.read("b/link")) != "lower" {
		t.Error("b/link is not a/target")
	}
	if v.tree.Lookup("d/lower") != nil || string(v.read("d/own")) != "y" {
		t.Error("d shows what was deleted, or lost what is its own")
	}
	if v.tree.Lookup("e/lower") != nil || string(v.read("e/new")) != "z" {
		t.Error("e shows what was deleted, or lost what is its own")
	}
}
