package tree

// machine is where a member runs; all trees of a forest share it.
type machine struct {
	load int // children in all trees and stripes
}
