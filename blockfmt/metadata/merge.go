package metadata

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	overlayXattrs = "trusted.overlay."
	xattrOpaque   = overlayXattrs + "opaque"
)

// Merge returns the tree that results from laying layers over each other, bottom first, as overlayfs shows it: whiteouts
// (character devices 0/0) delete, directories merge unless the upper one carries trusted.overlay.opaque=y, everything else
// replaces. The result has the devices of all layers one after the other, neither whiteouts nor trusted.overlay
// attributes, and no Implicit or LinkTo; it fails with ErrCorrupt if a LinkTo leads nowhere. Unlike overlayfs, it respects an
// opaque root, as the OCI image specification has it.
//
// An implicit directory above a symlink of a lower layer means the directory that the symlink leads to, because that is
// where unpacking a tar puts what is below it.
//
// The layers are not changed. The result shares maps and slices with them.
func Merge(layers []*Tree) (*Tree, error) {
	m := &merger{root: &Inode{Mode: TypeDir | 0o755, Entries: make(map[string]*Inode)}}
	for i, layer := range layers {
		if err := m.add(layer, i == 0); err != nil {
			return nil, fmt.Errorf("merge layer %d: %w", i, err)
		}
	}
	return &Tree{Root: m.root, Devices: m.devices}, nil
}

// merger lays one layer after the other over root, whose inodes are its own: directories change in place, others only as a
// whole. The second group of fields belongs to the layer that is being added.
type merger struct {
	root    *Inode
	devices []Device

	layer   *Tree
	clones  map[*Inode]*Inode // what several names may share
	lower   map[*Inode]*Inode // where a LinkTo leads in the tree below; nil if nowhere
	late    []late            // links that lead to this layer itself
	detours []detour
}

// late is a hard link that is made when everything else of its layer is in place.
type late struct {
	dir  *Inode
	name string
	in   *Inode
}

// detour is an implicit directory at the place of a symlink.
type detour struct {
	path string
	in   *Inode
}

func (m *merger) add(layer *Tree, bottom bool) error {
	if layer.Root == nil || !layer.Root.IsDir() {
		return fmt.Errorf("the root is not a directory: %w", blockfmt.ErrCorrupt)
	}
	m.layer, m.late, m.detours = layer, nil, nil
	m.clones, m.lower = make(map[*Inode]*Inode), make(map[*Inode]*Inode)
	m.findLinks(layer.Root)
	if bottom || !layer.Root.Implicit {
		setAttributes(m.root, layer.Root)
	}
	if err := m.fill(m.root, layer.Root, ""); err != nil {
		return err
	}
	for len(m.detours) > 0 {
		if err := m.takeDetours(); err != nil {
			return err
		}
	}
	m.devices = append(m.devices, layer.Devices...)
	return m.linkLate()
}

// findLinks looks up the targets of the layer's links before the layer changes anything: a link means the lower file
// even if the layer replaces that later.
func (m *merger) findLinks(dir *Inode) {
	for _, in := range dir.Entries {
		if in.LinkTo != "" {
			m.lower[in] = resolve(m.root, in.LinkTo, 0)
		} else if in.IsDir() {
			m.findLinks(in)
		}
	}
}

// fill lays the entries of in over those of dir. path is dir's, for messages and the order of detours.
func (m *merger) fill(dir, in *Inode, path string) error {
	if in.Xattrs[xattrOpaque] == "y" {
		clear(dir.Entries)
	}
	for name, entry := range in.Entries {
		if err := m.enter(dir, name, entry, path); err != nil {
			return err
		}
	}
	return nil
}

func (m *merger) enter(dir *Inode, name string, in *Inode, path string) error {
	old := dir.Entries[name]
	switch {
	case in.LinkTo != "":
		m.late = append(m.late, late{dir, name, in})
	case in.IsWhiteout():
		delete(dir.Entries, name)
	case !in.IsDir():
		clone, err := m.clone(in)
		if err != nil {
			return fmt.Errorf("%.300q: %w", join(path, name), err)
		}
		dir.Entries[name] = clone
	case in.Implicit && old != nil && old.Mode&TypeMask == TypeSymlink:
		m.detours = append(m.detours, detour{join(path, name), in})
	case old == nil || !old.IsDir():
		old = &Inode{Entries: make(map[string]*Inode, len(in.Entries))}
		dir.Entries[name] = old
		setAttributes(old, in)
		return m.fill(old, in, join(path, name))
	default:
		if !in.Implicit {
			setAttributes(old, in)
		}
		return m.fill(old, in, join(path, name))
	}
	return nil
}

// clone returns the inode as it is in the merged tree: with the devices behind those of the layers below.
func (m *merger) clone(in *Inode) (*Inode, error) {
	if c := m.clones[in]; c != nil {
		return c, nil
	}
	c := new(*in)
	c.Xattrs = withoutOverlay(in.Xattrs)
	if len(m.devices) > 0 {
		c.Extents = slices.Clone(in.Extents)
	}
	for i := range c.Extents {
		if d := in.Extents[i].Device; d < 0 || d >= len(m.layer.Devices) {
			return nil, fmt.Errorf("device %d of %d: %w", d, len(m.layer.Devices), blockfmt.ErrCorrupt)
		}
		if len(m.devices) > 0 {
			c.Extents[i].Device += len(m.devices)
		}
	}
	m.clones[in] = c
	return c, nil
}

// takeDetours fills in the directories that the detours' symlinks lead to. In sorted order, since two may lead to one place.
func (m *merger) takeDetours() error {
	detours := m.detours
	m.detours = nil
	slices.SortFunc(detours, func(a, b detour) int { return strings.Compare(a.path, b.path) })
	for _, d := range detours {
		dir := resolve(m.root, d.path, followLast|makeDirs)
		if dir == nil || !dir.IsDir() {
			return fmt.Errorf("%.300q is a directory through a symlink that leads to none: %w", d.path, blockfmt.ErrCorrupt)
		}
		if err := m.fill(dir, d.in, d.path); err != nil {
			return err
		}
	}
	return nil
}

// linkLate makes the hard links whose targets are known now.
func (m *merger) linkLate() error {
	for _, l := range m.late {
		if m.lower[l.in] == nil {
			m.lower[l.in] = resolve(m.root, l.in.LinkTo, 0)
		}
		target := m.lower[l.in]
		if target == nil || target.IsDir() {
			return fmt.Errorf("hard link %.80q to %.300q, which is no file: %w", l.name, l.in.LinkTo, blockfmt.ErrCorrupt)
		}
	}
	for _, l := range m.late {
		l.dir.Entries[l.name] = m.lower[l.in]
	}
	return nil
}

// setAttributes gives a directory of the merged tree another one's attributes.
func setAttributes(dir, from *Inode) {
	dir.Mode, dir.UID, dir.GID = from.Mode, from.UID, from.GID
	dir.Mtime, dir.MtimeNsec = from.Mtime, from.MtimeNsec
	dir.Xattrs = withoutOverlay(from.Xattrs)
}

func withoutOverlay(xattrs map[string]string) map[string]string {
	overlay := 0
	for name := range xattrs {
		if strings.HasPrefix(name, overlayXattrs) {
			overlay++
		}
	}
	if overlay == 0 {
		return xattrs
	}
	rest := make(map[string]string, len(xattrs)-overlay)
	for name, value := range xattrs {
		if !strings.HasPrefix(name, overlayXattrs) {
			rest[name] = value
		}
	}
	return rest
}
