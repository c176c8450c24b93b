// Package dag gives colours to the tasks of a directed acyclic graph of invocations, so that the data between them stays where it is, and runs such graphs.
//
//	Graph --Chains, VirtualWorkers--> Colours --Run--> one invocation for each task, its colour as the hint for placement
//
// The graph's owner, a workflow or a compiler of queries, knows which task reads which output; the platform does not. Both colourings are from Palette
// (EuroSys'23): a chain of tasks that feed each other is one colour, or the tasks are scheduled on a number of virtual workers, each of which is a colour. A
// colour is a hint: a task's inputs are passed to it wherever it runs.
//
// The package is pure but for Run, which starts goroutines and waits for them.
package dag
