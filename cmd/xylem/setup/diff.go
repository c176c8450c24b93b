package setup

import (
	"fmt"
	"strings"
)

// hunk says that lines a[a0:a1] became b[b0:b1].
type hunk struct{ a0, a1, b0, b1 int }

// splitLines cuts a text after each newline. A last line without one differs from the same line with one.
func splitLines(text []byte) []string {
	if len(text) == 0 {
		return nil
	}
	lines := strings.SplitAfter(string(text), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// match pairs equal lines of a and b in their order, as many as possible: the result has for each line of a the index of
// its partner in b, or -1.
func match(a, b []string) []int {
	pairs := make([]int, len(a))
	for i := range pairs {
		pairs[i] = -1
	}
	start, endA, endB := 0, len(a), len(b)
	for start < endA && start < endB && a[start] == b[start] {
		pairs[start] = start
		start++
	}
	for endA > start && endB > start && a[endA-1] == b[endB-1] {
		endA, endB = endA-1, endB-1
		pairs[endA] = endB
	}
	matchMiddle(a, b, pairs, start, endA, endB)
	return pairs
}

// matchMiddle fills in the pairs of a[start:endA] and b[start:endB] by the longest common subsequence.
func matchMiddle(a, b []string, pairs []int, start, endA, endB int) {
	rows, columns := endA-start+1, endB-start+1
	length := make([][]int32, rows) // length[i][j] is that of a[start+i:endA] and b[start+j:endB]
	for i := range length {
		length[i] = make([]int32, columns)
	}
	for i := rows - 2; i >= 0; i-- {
		for j := columns - 2; j >= 0; j-- {
			if a[start+i] == b[start+j] {
				length[i][j] = length[i+1][j+1] + 1
			} else {
				length[i][j] = max(length[i+1][j], length[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < rows-1 && j < columns-1; {
		switch {
		case a[start+i] == b[start+j]:
			pairs[start+i] = start + j
			i, j = i+1, j+1
		case length[i+1][j] >= length[i][j+1]:
			i++
		default:
			j++
		}
	}
}

// diff returns what changed from a to b, in order.
func diff(a, b []string) []hunk {
	var hunks []hunk
	i, j := 0, 0
	for at, partner := range match(a, b) {
		if partner < 0 {
			continue
		}
		hunks = append(hunks, split(a, b, hunk{i, at, j, partner})...)
		i, j = at+1, partner+1
	}
	return append(hunks, split(a, b, hunk{i, len(a), j, len(b)})...)
}

// split makes hunks as small as they can be undone: lines that were replaced by as many, a last line that got its newline, and
// each of the tables that were inserted.
func split(a, b []string, h hunk) (hunks []hunk) {
	newline := h.a1 == h.a0+1 && h.b1 > h.b0 && b[h.b0] == a[h.a0]+"\n"
	for h.a0 < h.a1 && (h.a1-h.a0 == h.b1-h.b0 || newline) {
		hunks = append(hunks, hunk{h.a0, h.a0 + 1, h.b0, h.b0 + 1})
		h.a0, h.b0 = h.a0+1, h.b0+1
	}
	for i := h.b0 + 1; i < h.b1 && h.a0 == h.a1; i++ {
		if isBlank(b[i-1]) || !opensTable(b[i:i+1]) && !(isBlank(b[i]) && i+1 < h.b1 && opensTable(b[i+1:i+2])) {
			continue
		}
		hunks = append(hunks, hunk{h.a0, h.a0, h.b0, i})
		h.b0 = i
	}
	if h.a0 < h.a1 || h.b0 < h.b1 {
		hunks = append(hunks, h)
	}
	return hunks
}

func isBlank(line string) bool { return strings.TrimSpace(line) == "" }

// unified shows the difference of two texts with up to two unchanged lines around each change.
func unified(path string, before, after []byte) string {
	const context = 2
	a, b := splitLines(before), splitLines(after)
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", nameOf(path, before), nameOf(path, after))
	print := func(mark string, lines []string) {
		for _, line := range lines {
			out.WriteString(mark + strings.TrimRight(line, "\r\n") + "\n")
		}
	}
	printed := 0 // lines of a, or none yet
	for i, h := range diff(a, b) {
		if i == 0 || h.a0-printed > 2*context {
			if i > 0 {
				print(" ", a[printed:printed+context])
			}
			printed = max(h.a0-context, 0)
			fmt.Fprintf(&out, "@@ line %d @@\n", h.a0+1)
		}
		print(" ", a[printed:h.a0])
		print("-", a[h.a0:h.a1])
		print("+", b[h.b0:h.b1])
		printed = h.a1
	}
	print(" ", a[printed:min(printed+context, len(a))])
	return out.String()
}

func nameOf(path string, text []byte) string {
	if text == nil {
		return "/dev/null"
	}
	return path
}

// strip undoes in current what turned original into written, and leaves alone what was changed since. It returns the lines that
// are still xylem's because somebody changed them or put something between them.
func strip(original, written, current []byte) (text []byte, left []string) {
	o, w, c := splitLines(original), splitLines(written), splitLines(current)
	where := match(w, c)
	hunks := diff(o, w)
	for i := len(hunks) - 1; i >= 0; i-- {
		h := hunks[i]
		at, ok := locate(where, h)
		if !ok || opensTable(w[h.b0:h.b1]) && continues(c[at+h.b1-h.b0:]) && !continues(w[h.b1:]) {
			left = append(w[h.b0:h.b1:h.b1], left...)
			continue
		}
		c = append(c[:at:at], append(o[h.a0:h.a1:h.a1], c[at+h.b1-h.b0:]...)...)
	}
	for i, line := range c {
		if i < len(c)-1 && !strings.HasSuffix(line, "\n") { // it was the last one
			c[i] += "\n"
		}
	}
	return []byte(strings.Join(c, "")), left
}

// locate finds the lines of a hunk in the current text, where they have to be together.
func locate(where []int, h hunk) (at int, ok bool) {
	if h.b0 == h.b1 {
		if h.b0 == 0 {
			return 0, true
		}
		return where[h.b0-1] + 1, where[h.b0-1] >= 0
	}
	at = where[h.b0]
	for i := h.b0; i < h.b1; i++ {
		if where[i] < 0 || where[i] != at+i-h.b0 {
			return 0, false
		}
	}
	return at, true
}

func opensTable(lines []string) bool {
	for _, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "[") {
			return true
		}
	}
	return false
}

// continues reports whether the first line that says anything belongs to the table before it.
func continues(lines []string) bool {
	for _, line := range lines {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return line[0] != '['
		}
	}
	return false
}
