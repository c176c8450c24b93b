package blockfmt_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

func TestProfile(t *testing.T) {
	layer := digest.FromString("layer")
	p := blockfmt.Profile{
		{Layer: layer, Path: "usr/bin/python3", Offset: 0, Length: 4096},
		{Layer: layer, Path: "a name with spaces\n\xff and \"quotes\"", Offset: 1 << 40, Length: 1},
	}
	got, err := blockfmt.ParseProfile(p.Encode())
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		"x", "\n", layer.String() + " 0 1", layer.String() + " 0 0 \"a\"", layer.String() + " -1 5 \"a\"", layer.String() + " 0 -5 \"a\"",
		layer.String() + " 0 5 a", layer.String() + " 0 5 \"a", "sha256:x 0 5 \"a\"", layer.String() + " 99999999999999999999 5 \"a\"",
	} {
		if _, err := blockfmt.ParseProfile([]byte(bad)); !errors.Is(err, blockfmt.ErrCorrupt) || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
	if got, err := blockfmt.ParseProfile(nil); err != nil || len(got) != 0 {
		t.Errorf("empty: %v, %v", got, err)
	}
}

func TestRecord(t *testing.T) {
	r := blockfmt.Record{{Layer: 0, Block: 0}, {Layer: 3, Block: 1 << 20}, {Layer: 65535, Block: 1<<31 - 1}}
	got, err := blockfmt.ParseRecord(r.Encode())
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"1", "1 2 3", "a b", "-1 2", "1 -2", "65536 0", "0 2147483648", "1\t2", "+1 2"} {
		if _, err := blockfmt.ParseRecord([]byte(bad)); !errors.Is(err, blockfmt.ErrCorrupt) {
			t.Errorf("%q: error %v", bad, err)
		}
	}
	if _, err := blockfmt.ParseRecord([]byte(strings.Repeat("0 0\n", 4<<20+1))); !errors.Is(err, blockfmt.ErrCorrupt) {
		t.Errorf("too many lines: %v", err)
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add(blockfmt.Profile{{Layer: digest.FromString("x"), Path: "a\nb", Offset: 5, Length: 7}}.Encode())
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := blockfmt.ParseProfile(text)
		if err != nil {
			if !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			return
		}
		if again, err := blockfmt.ParseProfile(p.Encode()); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("%+v becomes %+v, %v", p, again, err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add(blockfmt.Record{{Layer: 1, Block: 2}}.Encode())
	f.Add([]byte("1 2\n3 4"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := blockfmt.ParseRecord(text)
		if err != nil {
			if !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			return
		}
		if again, err := blockfmt.ParseRecord(r.Encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v becomes %+v, %v", r, again, err)
		}
	})
}
