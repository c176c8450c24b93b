// Package demoimage builds the image that the demo and the benchmarks run: Debian with a scientific Python stack, above a
// gigabyte in five layers, made on this machine from its own package mirrors and kept in a cache directory.
package demoimage
