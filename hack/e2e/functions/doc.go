// Package functions tests the executor with real containerd, runc, programs and mounts.
package functions
