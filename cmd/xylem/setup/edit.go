package setup

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is the text of a TOML file that is edited in place. All other text stays as it is.
type document struct{ text []byte }

// entry is a table's header or a key with its value.
type entry struct {
	path               []string // from the root; below an array of tables its name has "[]"
	table              []string // path of the header that it is under
	header, inline     bool
	start, keyEnd, end int // offsets in the text: of the first byte, after the key, after the value or the header
}

// newDocument checks that the text is TOML.
func newDocument(text []byte) (*document, error) {
	var v map[string]any
	err := toml.Unmarshal(text, &v)
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		err = fmt.Errorf("line %d: %w", line, err)
	}
	return &document{text}, err
}

// entries lists headers and keys in the order of the text.
func (d *document) entries() []entry {
	var p unstable.Parser
	p.Reset(d.text)
	var found []entry
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
			continue
		}
		var path []string
		var first, last unstable.Range
		for it := e.Key(); it.Next(); {
			last = it.Node().Raw
			if path == nil {
				first = last
			}
			path = append(path, string(it.Node().Data))
		}
		n := entry{start: int(first.Offset), keyEnd: int(last.Offset + last.Length)}
		if e.Kind == unstable.KeyValue {
			n.table, n.path = table, append(table[:len(table):len(table)], path...)
			n.inline = e.Value().Kind == unstable.InlineTable
			n.end = int(e.Raw.Offset + e.Raw.Length)
		} else {
			if e.Kind == unstable.ArrayTable {
				path[len(path)-1] += "[]"
			}
			table, n.table, n.path, n.header = path, path, path, true
			n.end = n.keyEnd + bytes.IndexByte(d.text[n.keyEnd:], ']') + 1
		}
		found = append(found, n)
	}
	return found
}

// set makes the key at path have the value, which is TOML. It changes the value where there is one, and adds a line to the
// table or a table at the end where there is none.
func (d *document) set(value string, path ...string) error {
	table := path[:len(path)-1]
	var last *entry // after whose line a new one belongs
	for _, e := range d.entries() {
		switch {
		case e.inline && len(e.path) < len(path) && slices.Equal(e.path, path[:len(e.path)]):
			return fmt.Errorf("line %d: write the inline table %s as [%s]", d.line(e.start), dotted(e.path), dotted(e.path))
		case !e.header && slices.Equal(e.path, path):
			d.replaceValue(e, value)
			return nil
		case e.header && slices.Equal(e.path, table), !e.header && len(e.path) > len(table) && slices.Equal(e.path[:len(table)], table) && len(e.table) <= len(table):
			last = &e
		}
	}
	switch {
	case last != nil:
		d.insert(d.lineEnd(last.end), d.indent(last)+dotted(path[len(last.table):])+" = "+value+"\n")
	case len(table) == 0:
		d.insertFirst(dotted(path) + " = " + value + "\n")
	default:
		d.add(fmt.Sprintf("[%s]\n  %s = %s\n", dotted(table), dotted(path[len(table):]), value))
	}
	return nil
}

// replaceValue leaves what is around the value: spaces and a comment behind it.
func (d *document) replaceValue(e entry, value string) {
	from := e.keyEnd + bytes.IndexByte(d.text[e.keyEnd:], '=') + 1
	for d.text[from] == ' ' || d.text[from] == '\t' {
		from++
	}
	d.text = slices.Concat(d.text[:from], []byte(value), d.text[e.end:])
}

// remove takes a key of the root out of the text, with its line.
func (d *document) remove(key string) {
	for _, e := range d.entries() {
		if !e.header && slices.Equal(e.path, []string{key}) {
			d.text = slices.Concat(d.text[:d.lineStart(e.start)], d.text[d.lineEnd(e.end):])
			return
		}
	}
}

// add puts a block at the end, after an empty line.
func (d *document) add(block string) {
	if len(d.text) > 0 {
		block = "\n" + block
	}
	d.insert(len(d.text), block)
}

// insertFirst puts a line before all keys and tables, and after the comments above them.
func (d *document) insertFirst(line string) {
	at := len(d.text)
	if all := d.entries(); len(all) > 0 {
		at = d.lineStart(all[0].start)
	}
	d.insert(at, line)
}

// insert puts whole lines at the beginning of a line, or at the end of the text.
func (d *document) insert(at int, lines string) {
	if at > 0 && d.text[at-1] != '\n' {
		lines = "\n" + lines
	}
	d.text = slices.Concat(d.text[:at], []byte(lines), d.text[at:])
}

// has reports whether the table or array of tables is there.
func (d *document) has(path ...string) bool {
	return slices.ContainsFunc(d.entries(), func(e entry) bool { return e.header && slices.Equal(e.path, path) })
}

// indent is that of a key, or two spaces more than that of a header.
func (d *document) indent(e *entry) string {
	line := d.text[d.lineStart(e.start):e.start]
	indent := string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
	if e.header {
		indent += "  "
	}
	return indent
}

func (d *document) lineStart(at int) int { return bytes.LastIndexByte(d.text[:at], '\n') + 1 }

func (d *document) lineEnd(at int) int {
	if i := bytes.IndexByte(d.text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(d.text)
}

func (d *document) line(at int) int { return bytes.Count(d.text[:at], []byte("\n")) + 1 }

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// dotted writes a path as TOML.
func dotted(path []string) string {
	parts := make([]string, len(path))
	for i, p := range path {
		if parts[i] = p; !bareKey.MatchString(p) {
			parts[i] = strconv.Quote(p)
		}
	}
	return strings.Join(parts, ".")
}
