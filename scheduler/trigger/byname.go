package trigger

import (
	"fmt"
	"path"
	"strings"
)

// ByName fires for every object whose key matches. Firings are called by the key.
type ByName struct {
	// Key is a key, or a pattern as path.Match has it: "*" and "?" do not match "/", "[a-z]" is one of these, "\" takes the next character as it is.
	Key string
}

// Kind implements Rule.
func (ByName) Kind() string { return "by-name" }

func (r ByName) check(report func(parameter, what string)) {
	if r.Key == "" || len(r.Key) > maxName {
		report("key", fmt.Sprintf("key of %d bytes, want 1 to %d", len(r.Key), maxName))
	} else if _, err := path.Match(r.Key, ""); err != nil {
		report("key", fmt.Sprintf("%.80q is no pattern: a '[' needs its ']', a '\\' something behind it", r.Key))
	}
}

func (r ByName) prepare() prepared {
	return named{r.Key, strings.ContainsAny(r.Key, `*?[\`)}
}

type named struct {
	key     string
	pattern bool
}

func (n named) takes(k Key) bool {
	if !n.pattern {
		return string(k) == n.key
	}
	ok, err := path.Match(n.key, string(k))
	return ok && err == nil
}

func (named) matcher() matcher { return &each{} }
