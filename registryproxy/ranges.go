package registryproxy

import (
	"errors"
	"strconv"
	"strings"
)

// span is a part of a blob: n bytes at off.
type span struct{ off, n int64 }

// errUnsatisfiable: a range begins behind the end, 416.
var errUnsatisfiable = errors.New("range not satisfiable")

// parseRange reads a Range header for a blob of size bytes by RFC 9110, section 14. partial is false, and the span the whole
// blob, where a server may or must ignore the header: another unit, bad syntax, or several ranges, which no client of a
// registry needs and which would let a short request ask for much.
func parseRange(header string, size int64) (s span, partial bool, err error) {
	whole := span{0, size}
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(strings.TrimSpace(unit), "bytes") || strings.Contains(set, ",") {
		return whole, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(set), "-")
	if !ok {
		return whole, false, nil
	}
	if first == "" {
		return suffix(last, size)
	}
	from, err := number(first)
	if err != nil {
		return whole, false, nil
	}
	to := size - 1
	if last != "" {
		if to, err = number(last); err != nil || to < from {
			return whole, false, nil
		}
	}
	if from >= size {
		return span{}, false, errUnsatisfiable
	}
	return span{from, min(to, size-1) - from + 1}, true, nil
}

// suffix reads what follows the dash of "bytes=-500": the last bytes.
func suffix(last string, size int64) (span, bool, error) {
	n, err := number(last)
	switch {
	case err != nil:
		return span{0, size}, false, nil
	case n == 0 || size == 0:
		return span{}, false, errUnsatisfiable
	}
	n = min(n, size)
	return span{size - n, n}, true, nil
}

// number reads decimal digits alone. What is too large for any blob is as good as the largest.
func number(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 1<<63 - 1, nil
	}
	return n, err
}

// matches says whether an If-None-Match or If-Range header names the entity tag. An If-Range must be strong.
func matches(header, etag string, weak bool) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimSpace(part)
		if weak {
			if part == "*" {
				return true
			}
			part = strings.TrimPrefix(part, "W/")
		}
		if part == etag {
			return true
		}
	}
	return false
}
