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
// This holds for the FUSE mount and for every tree that is mounted over it, in any of the ways of package erofs. A thread of
// this process that waits for such a path waits for this process's own answer, and some ways of waiting keep the runtime
// from giving it:
//
//   - Starting a program whose file or working directory lies there hangs for good (seen in a test): the thread that forks
//     keeps its processor until the child has read the file, and the garbage collector waits for that thread. Let another
//     program start it.
//   - A page fault on a mapping of such a file keeps the processor as well.
//   - os.Open on the FUSE mount adds the file to the runtime's poller, whose request can take the last running thread.
//   - Whatever waits while it holds a lock that Fill wants.
//
// Read blobs through the Blob instead, and take device numbers from /proc/self/mountinfo. Plain open(2), read(2) and stat(2)
// by package unix are safe, because the runtime lends the processor to somebody else meanwhile: so the kernel's opening of device
// files while EROFS is mounted works with GOMAXPROCS=1 too.
package fuse
