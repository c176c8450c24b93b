// Package convert makes block images out of OCI images: the first step on the way of the data.
//
// Each source layer is converted on its own and cached by its diffID:
//
//	download -> verify digest -> decompress -> verify diffID -> tar -> metadata.Tree + spool of file data
//	spool -> blocks of 512 KiB -> zstd -> blob, chunk index, metadata image of the layer
//
// Then the layers' trees are merged into the metadata image of the whole, and manifest, config and companion are built and
// signed. The same source and profile give the same bytes on every machine: whatever depends on time, order of
// completion or number of processors stays out of the output.
//
// # What a tar entry becomes
//
// The rules are those of containerd's overlayfs snapshotter, so that the mounted tree equals the unpacked one: names are
// cleaned and confined to the root, symbolic links among a name's parents are followed within the layer and confined to the
// root too, missing parents are made, a directory over a directory merges, everything else replaces, a hard link's header
// overrides its target's attributes, and the root's own entry is ignored. What containerd refuses is refused, with two
// exceptions that other builders emit and whose meaning the OCI specification fixes: a hard link to a file of a lower layer,
// and a whiteout beside an entry of the same layer.
//
// # Memory
//
// File data goes through a spool file on disk; in memory are a few blocks per worker and the trees, about 300 bytes a file.
package convert
