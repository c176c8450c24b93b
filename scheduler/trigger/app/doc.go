// Package app reads the declaration of an application: its functions, its data buckets, and the triggers between them.
//
// It stands before the way of the data: what a user writes becomes what package trigger evaluates.
//
//	declaration (TOML) --Parse--> Application --trigger.New--> Evaluator
//
// A declaration looks like this:
//
//	name = "wordcount"
//
//	[limits]                   # of each session; all may be left out
//	objects = 100000
//	bytes = 1073741824
//	steps = 10000
//	time = "1h"
//
//	[functions.split]
//	puts = ["words"]           # the buckets that it puts objects into
//	[functions.count]
//	puts = ["counts"]
//	[functions.sum]
//
//	[buckets.text]
//	input = true               # objects come from outside
//	[buckets.words]
//	[buckets.counts]
//
//	[triggers.start]
//	type = "immediate"
//	bucket = "text"
//	function = "split"
//
//	[triggers.each]
//	type = "by-batch-size"
//	bucket = "words"
//	function = "count"
//	n = 100
//	timeout = "2s"
//
//	[triggers.all]
//	type = "by-set"
//	bucket = "counts"
//	function = "sum"
//	keys = ["a-m", "n-z"]
//	gets = "both"              # "values" (default), "keys" or "both"
//	scope = "session"          # default; "application" for by-batch-size and by-time only
//	[triggers.all.rerun]
//	source = "count"
//	timeout = "10s"
//	attempts = 3               # default
//	backoff = "1s"             # default none
//
// The types and their parameters are those of package trigger: immediate, by-name (key), by-batch-size (n, timeout), by-set (keys), redundant
// (k, n, rest), by-time (window, slide), dynamic-join, dynamic-group (controls). Times are written as "1m30s".
//
// Parse finds all that is wrong, each with its place. The version of an application is a digest of what it means: comments, order and
// other ways to write the same do not change it.
package app
