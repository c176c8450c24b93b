// Package executor runs the instances of functions on a node: containers of containerd on lazy mounts, each with its own network
// namespace, and brings invocations to them.
//
//	scheduler --work API (scheduler/api/work.go)--> Handler --contract--> program in the container
//
// An Executor owns everything of an instance: the namespace, the container and its snapshot, the pipes of its output, and what speaks
// the function's contract inside the namespace. For the contract "lambda" that is a server of the AWS Lambda Runtime API, for
// "http" a client of the program's own server. A namespace has a loopback device only, so a function reaches nothing but its contract.
//
// An instance goes through starting, ready, paused (frozen while nobody invokes it) and gone. Whatever ends it, everything of it is removed
// before its memory is given to another one. Instances do not survive the executor: when it starts, it removes what a former one left
// behind in its containerd namespace and state directory. Adopting them instead may come later.
package executor
