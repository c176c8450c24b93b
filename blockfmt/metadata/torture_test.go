package metadata

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

func file(size int64, extents ...Extent) *Inode {
	return &Inode{Mode: TypeFile | 0o644, Mtime: 1700000000, Size: size, Extents: extents}
}

func directory(entries map[string]*Inode) *Inode {
	return &Inode{Mode: TypeDir | 0o755, Mtime: 1600000000, Entries: entries}
}

func symlink(target string) *Inode { return &Inode{Mode: TypeSymlink | 0o777, Target: target} }

func with(in *Inode, change func(*Inode)) *Inode {
	change(in)
	return in
}

func devices(pages ...int64) []Device {
	list := make([]Device, len(pages))
	for i, n := range pages {
		list[i] = Device{Size: n * blockSize, Digest: digest.FromString(fmt.Sprint(i, n))}
	}
	return list
}

// torture is a tree with everything in it that has gone wrong in some image format.
func torture() *Tree {
	shared := with(file(5000, Extent{0, 5000, 0, 0}), func(in *Inode) { in.UID, in.GID, in.MtimeNsec = 70000, 1<<32-2, 999999999 })
	link := symlink("../lib")
	return &Tree{Devices: devices(64, 0, 100), Root: directory(map[string]*Inode{
		"sizes":    tortureSizes(),
		"xattrs":   tortureXattrs(),
		"names":    tortureNames(),
		"many":     manyFiles(20000),
		"special":  tortureSpecial(),
		"targets":  tortureTargets(),
		"a":        directory(map[string]*Inode{"shared": shared, "link": link, "nothing": directory(nil)}),
		"b":        directory(map[string]*Inode{"shared again": shared, "deep": directory(map[string]*Inode{"shared": shared, "link": link})}),
		"setuid":   with(file(0), func(in *Inode) { in.Mode = TypeFile | 0o4755 }),
		"tmp":      with(directory(nil), func(in *Inode) { in.Mode = TypeDir | 0o1777 }),
		"ancient":  with(file(0), func(in *Inode) { in.Mtime, in.MtimeNsec = -1<<33, 1 }),
		"future":   with(file(0), func(in *Inode) { in.Mtime = 1 << 34 }),
		"noaccess": with(file(1, Extent{0, 1, 2, 99 * blockSize}), func(in *Inode) { in.Mode = TypeFile }),
	})}
}

func tortureSizes() *Inode {
	const page = blockSize
	return directory(map[string]*Inode{
		"empty":      file(0),
		"one":        file(1, Extent{0, 1, 0, page}),
		"page":       file(page, Extent{0, page, 0, 0}),
		"page+1":     file(page+1, Extent{0, page + 1, 0, 3 * page}),
		"hole":       file(3*page + 7),
		"hole first": file(5*page+3, Extent{4 * page, page + 3, 2, 7 * page}),
		"hole last":  file(50*page+1, Extent{0, 16 * page, 2, 7 * page}),
		"holes":      file(20*page, Extent{2 * page, 2 * page, 0, 0}, Extent{5 * page, page, 0, 9 * page}, Extent{17 * page, page, 2, 0}),
		"pieces":     file(7*page-1, Extent{0, page, 2, 50 * page}, Extent{page, 3 * page, 2, 0}, Extent{4 * page, 3*page - 1, 0, 20 * page}),
		"joined":     file(6*page-5, Extent{0, 2 * page, 2, page}, Extent{2 * page, page, 2, 3 * page}, Extent{3 * page, 3*page - 5, 2, 4 * page}),
		"5 GiB":      file(5<<30+1, Extent{1 << 30, 64 * page, 0, 0}, Extent{5 << 30, 1, 2, 0}),
		"1 PiB":      file(1<<50+1, Extent{1 << 50, 1, 2, 0}),
	})
}

func tortureXattrs() *Inode {
	dir := directory(make(map[string]*Inode))
	for size := range 41 {
		name := fmt.Sprintf("value %d", size)
		dir.Entries[name] = with(file(9000, Extent{0, 9000, 0, int64(size) * blockSize}), func(in *Inode) {
			in.Xattrs = map[string]string{"user.x": strings.Repeat("v", size)}
		})
	}
	all := map[string]string{
		"security.capability": capability(), "system.posix_acl_access": acl(1000), "trusted.t": "", "user.": "", "user." + strings.Repeat("n", 250): "long",
		"user.big": strings.Repeat("0123456789", 1000),
	}
	delete(all, "user.")
	dir.Entries["all"] = with(file(9000, Extent{0, 9000, 0, 0}), func(in *Inode) { in.Xattrs = all })
	dir.Entries["acl"] = with(directory(map[string]*Inode{"x": file(0)}), func(in *Inode) {
		in.Xattrs = map[string]string{"system.posix_acl_default": acl(70000), "user.d": "1"}
	})
	dir.Entries["full directory"] = with(manyFiles(100), func(in *Inode) { in.Xattrs = map[string]string{"user.big": strings.Repeat("b", 3900)} })
	dir.Entries["full link"] = with(symlink(strings.Repeat("t", 200)), func(in *Inode) { in.Xattrs = map[string]string{"trusted.big": strings.Repeat("b", 3900)} })
	dir.Entries["huge"] = with(file(1, Extent{0, 1, 0, 0}), func(in *Inode) {
		in.Xattrs = map[string]string{"trusted.a": strings.Repeat("a", 60000), "trusted.b": strings.Repeat("b", 1<<16-1)}
	})
	return dir
}

func tortureNames() *Inode {
	dir := directory(make(map[string]*Inode))
	for i, name := range []string{
		"-", "!", "...", ".a", ".-", "..b", "\xff\xfe", "\x01", "ä", "a\xcc\x88", "\xe4", " ", "new\nline", "a\\b", "\"", "*",
		strings.Repeat("n", 255), strings.Repeat("\xff", 255), strings.Repeat("ö", 127) + "x",
	} {
		dir.Entries[name] = file(int64(i)+1, Extent{0, int64(i) + 1, 0, int64(i) * blockSize})
	}
	return dir
}

func manyFiles(n int) *Inode {
	dir := directory(make(map[string]*Inode, n))
	for i := range n {
		dir.Entries[fmt.Sprintf("file %d", i*7919)] = file(int64(i%100), make([]Extent, 0)...)
	}
	return dir
}

func tortureSpecial() *Inode {
	node := func(mode, major, minor uint32) *Inode {
		return &Inode{Mode: mode | 0o600, Major: major, Minor: minor, MtimeNsec: 5}
	}
	return directory(map[string]*Inode{
		"null": node(TypeChar, 1, 3), "sda": node(TypeBlock, 8, 0), "large": node(TypeChar, 0xfff, 0xfffff), "minor": node(TypeBlock, 0x12, 0x345),
		"fifo": node(TypeFifo, 0, 0), "socket": node(TypeSocket, 0, 0), "whiteout": node(TypeChar, 0, 0),
	})
}

func tortureTargets() *Inode {
	dir := directory(make(map[string]*Inode))
	for _, n := range []int{1, 63, 64, 255, 1000, 3900, 4031, 4032, 4033, 4095} {
		dir.Entries[fmt.Sprint(n)] = symlink(strings.Repeat("x", n))
	}
	dir.Entries["bytes"] = symlink("/\xff/../..//")
	return dir
}
