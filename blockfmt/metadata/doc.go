// Package metadata writes, reads and merges the EROFS images that hold a block image's inodes, names, extended attributes
// and chunk maps, and no file data: those lie in the blobs, which the image names as extra devices.
//
// On the way of the data, convert makes one Tree per source layer, Merge makes one of them for the whole image or any prefix
// of its layers, WriteTo makes it an EROFS image and the kernel mounts that over the blobs. Read gets the Tree back.
//
// Everything here is in memory and without mounts. The same Tree gives the same bytes on every machine.
package metadata
