// Package fuse serves blobs as a few large read-only files in one FUSE mount, from which the kernel's EROFS reads file data:
//
//	block cache --Blob--> FUSE file --EROFS device--> overlay --> container
//
// Only blobs are files here. Metadata images lie on local disk, so lookups, stats and cached reads never come this way.
//
// # A server can be replaced
//
// Nothing that the kernel remembers about the mount is kept in this process: the root is node 1, the blob that the caller
// numbered i is node i+2, a file handle is its node id, and the kernel's INIT request is kept as it was received. So a new
// process that holds the descriptor and the same numbering can answer for the old one.
//
// # Never touch a path on the mount from the serving process
//
// A thread of this process that opens, stats or reads a path below the mount waits for this process's own answer. That
// ends well only while another thread is free to give it, which no lock and no os.File of the standard library promises:
// os.Open adds the file to the runtime's poller, whose FUSE_POLL request can take the last running thread, and an exec with
// an inherited descriptor can wait for the mount before the child exists. Read blobs through the Blob instead; take device
// numbers from /proc/self/mountinfo. The one exception is the kernel's own opening of device files while EROFS is mounted
// (package erofs): it happens inside a plain system call, during which the runtime lends the thread's processor to the
// server, so it works with GOMAXPROCS=1 too. It needs that no goroutine holds a lock that Fill wants while it mounts.
package fuse
