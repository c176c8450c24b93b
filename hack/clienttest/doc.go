// Package clienttest has real clients pull through the registry proxy: containerd, podman, buildah, skopeo, and the library of crane.
package clienttest
