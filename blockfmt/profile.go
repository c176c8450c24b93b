package blockfmt

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Profile is the order in which a container reads the files of its image while it starts, independent of how the image is
// laid out in blocks: `convert --profile` lays these ranges out first. Its text form is one range a line,
//
//	<diffID of the layer> <offset> <length> <Go-quoted path without leading slash>
type Profile []ProfileRange

// ProfileRange is a range of bytes of one file.
type ProfileRange struct {
	Layer  digest.Digest // diffID of the source layer whose blob holds the file
	Path   string        // within the image, without leading slash; any bytes
	Offset int64         // bytes from the start of the file
	Length int64         // bytes
}

// maxLines bounds the entries of a Profile or Record that is read.
const maxLines = 4 << 20

// Encode returns the text form.
func (p Profile) Encode() []byte {
	var b bytes.Buffer
	for _, r := range p {
		fmt.Fprintf(&b, "%s %d %d %s\n", r.Layer, r.Offset, r.Length, strconv.Quote(r.Path))
	}
	return b.Bytes()
}

// ParseProfile reads the text form; errors name the line.
func ParseProfile(text []byte) (Profile, error) {
	var p Profile
	err := eachLine(text, func(line string) error {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			return fmt.Errorf("want 4 fields, got %d", len(f))
		}
		r := ProfileRange{Layer: digest.Digest(f[0])}
		err := r.Layer.Validate()
		if err == nil {
			r.Offset, err = strconv.ParseInt(f[1], 10, 64)
		}
		if err == nil {
			r.Length, err = strconv.ParseInt(f[2], 10, 64)
		}
		if err == nil {
			r.Path, err = strconv.Unquote(f[3])
		}
		if err == nil && (r.Offset < 0 || r.Length <= 0) {
			err = fmt.Errorf("%d bytes at %d", r.Length, r.Offset)
		}
		p = append(p, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return p, nil
}

// Record is the order in which the first run of a block image touched its blocks: the order of prefetch and push for
// everyone after. Its text form is one block a line, "<layer from 0> <block from 0>".
type Record []BlockPos

// BlockPos is a block by its position in an Artifact.
type BlockPos struct{ Layer, Block int }

// Encode returns the text form.
func (r Record) Encode() []byte {
	var b bytes.Buffer
	for _, p := range r {
		fmt.Fprintf(&b, "%d %d\n", p.Layer, p.Block)
	}
	return b.Bytes()
}

// ParseRecord reads the text form; errors name the line. Positions are not checked against any artifact.
func ParseRecord(text []byte) (Record, error) {
	var r Record
	err := eachLine(text, func(line string) error {
		layer, block, ok := strings.Cut(line, " ")
		if !ok {
			return fmt.Errorf("want two numbers")
		}
		l, err1 := strconv.ParseUint(layer, 10, 16)
		b, err2 := strconv.ParseUint(block, 10, 31)
		if err1 != nil || err2 != nil {
			return fmt.Errorf("want two numbers, got %.40q", line)
		}
		r = append(r, BlockPos{int(l), int(b)})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("startup record: %w", err)
	}
	return r, nil
}

func eachLine(text []byte, do func(line string) error) error {
	n := 0
	for line := range bytes.Lines(text) {
		if n++; n > maxLines {
			return fmt.Errorf("more than %d lines: %w", maxLines, ErrCorrupt)
		}
		if err := do(strings.TrimSuffix(string(line), "\n")); err != nil {
			return fmt.Errorf("line %d: %w: %w", n, err, ErrCorrupt)
		}
	}
	return nil
}
