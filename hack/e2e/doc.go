// Package e2e tests the whole of a node from outside: the xylem binary, Debian's registry and containerd 1.6, containerd 2.4
// built from its module, ctr and the CRI. The tests need root and `make build`.
package e2e
