// Package registryproxy is the read side of the OCI distribution specification for the clients of one node: a pull-through
// http.Handler in front of any number of registries.
//
// It stands beside the way of the data, for images that nobody converted and for clients that are not containerd:
//
//	client --HTTP--> Proxy --Blobs--> Downloads --Source--> Upstream (a registry), or other nodes
//	                   |                  '--Store--> disk
//	                   '--Manifests--> disk
//
// A blob is cut into blocks of blockfmt.BlockSize raw bytes. Downloads keeps one download per blob, whoever asks for it, and
// lets clients read the blocks that are there while the others arrive, in whatever order the Source brings them. The digest
// of the whole is checked before the last block is given to anybody and before the blob is kept.
//
// What is kept is given to a client only if the registry it names accepts the client's credentials for that repository, and
// has the thing in it. Registries are asked once in a while, not each time; see Config.GrantTTL.
package registryproxy
