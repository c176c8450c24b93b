// Package blockfmt is the vocabulary of xylem and the format of its block images.
//
// The way of the data is
//
//	OCI image --convert--> block image --Source stack--> block cache --FUSE file--> EROFS mount --overlay--> container
//
// and this package names everything that travels along it:
//
//   - A blob holds the file data of one OCI layer: every file on a 4 KiB boundary, identical files stored once.
//   - A block is up to BlockSize bytes of a blob, stored as one zstd frame. A BlockID is the SHA-256 of the stored bytes,
//     so bytes are verified before they reach the decompressor and the same name addresses the block in caches and
//     between machines.
//   - A Ref says which block is meant and where its stored bytes lie in its blob.
//   - An Index lists the blocks of a blob: the chunk index of the EROFS Image Layer Format Specification.
//   - A Source gives the stored bytes of blocks. Caches, peers, registries and every policy in front of them are Sources.
//   - An Image is the random-access view of a blob's uncompressed bytes ("image data" in the specification) over a Source.
//   - An Artifact is the manifest that binds blobs, chunk indexes and the EROFS metadata of one container image together.
//   - A Profile is the order in which a container touches an image's files while it starts.
//
// The package imports nothing else of this project and does no I/O of its own.
package blockfmt
