// Package erofs mounts an EROFS metadata image over device files as a read-only tree, in three ways:
//
//   - WayFile: the kernel's EROFS reads metadata and devices as files. Linux 6.12 or later. Device files may lie in the FUSE
//     mount of package fuse; the metadata image must lie on local disk.
//   - WayLoop: the same over loop devices, for older kernels.
//   - WayTree: a FUSE file system in this process that answers everything from the metadata, for kernels without EROFS.
//
// All three show the same tree. Detect finds the first that works here, by trying.
//
// # Who may unmount when
//
// Unmount succeeds while an overlay still uses the tree as a lower directory: the kernel's overlay keeps what it needs alive, but it
// is then no longer in any mount table, and with WayTree its files fail. So count users, and unmount after the last; the kernel
// cannot be asked. The order is overlay, then this, then the FUSE server that serves the devices.
//
// Mount opens device paths from the calling thread. With paths on a FUSE mount that this process serves, that is safe as
// described in package fuse; nothing else here touches such a path.
package erofs
