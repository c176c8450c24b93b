package registryproxy

// The parsers, for the tests of another package.

func ParseRange(header string, size int64) (off, n int64, partial bool, err error) {
	s, partial, err := parseRange(header, size)
	return s.off, s.n, partial, err
}

var (
	Namespace        = namespace
	ErrUnsatisfiable = errUnsatisfiable
)
