package blockfmt

import "errors"

// The kinds of error that callers act on. Everything that fails on the way of the data wraps one of them with %w;
// what carries none is a local fault (disk full, bad configuration).
var (
	// ErrNotFound: nobody on this path has it. A Fallback asks the next Source.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt: bytes that do not match their digest, or a structure that contradicts itself.
	// The Source that gave them must not be asked again for the same thing.
	ErrCorrupt = errors.New("corrupt")
	// ErrTransient: the same request may succeed later (timeouts, 5xx, 429, connection loss).
	ErrTransient = errors.New("temporarily unavailable")
	// ErrDenied: credentials are missing or not sufficient (401, 403).
	ErrDenied = errors.New("denied")
	// ErrUnsupported: well-formed, but in a way this version does not read.
	ErrUnsupported = errors.New("unsupported")
)
