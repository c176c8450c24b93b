package main

import (
	"bytes"
	"io"
	"net/netip"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
)

func TestDrawTree(t *testing.T) {
	member := func(id, addr string, parents []string, held int, role string) api.TreeMember {
		return api.TreeMember{Agent: api.Peer{ID: id, Addrs: []netip.AddrPort{netip.MustParseAddrPort(addr)}}, Role: role,
			Parents: parents, Held: []int{held, 1}, Total: []int{20, 20}, Rates: []int64{1 << 20, 0}}
	}
	tree := api.Tree{Image: digest.FromString("image"), Ref: "r.example/app:v1", Stripes: 2, Members: []api.TreeMember{
		member("a-long-name-of-peer-aaaa", "10.0.0.1:9752", []string{"", "b"}, 20, "any"),
		member("b", "10.0.0.2:9752", []string{"a-long-name-of-peer-aaaa", ""}, 12, "any"),
		member("c", "10.0.0.3:9752", []string{"b", "b"}, 5, "leaf"),
		member("d", "10.0.0.4:9752", []string{"a-long-name-of-peer-aaaa", "b"}, 6, "any"),
	}}
	var out bytes.Buffer
	f := formatText
	if err := f.print(&out, tree, func(w io.Writer) { drawTree(w, tree) }); err != nil {
		t.Fatal(err)
	}
	want := `r.example/app:v1  6105d6cc76af  4 members

registry, stripe 0  AGENT     BLOCKS  RATE
└─ 10.0.0.1         eer-aaaa  20/20   1 MiB/s
   ├─ 10.0.0.2      b         12/20   1 MiB/s
   │  └─ 10.0.0.3   c         5/20    1 MiB/s  leaf
   └─ 10.0.0.4      d         6/20    1 MiB/s

registry, stripe 1  AGENT     BLOCKS  RATE
└─ 10.0.0.2         b         1/20    0 B/s
   ├─ 10.0.0.1      eer-aaaa  1/20    0 B/s
   ├─ 10.0.0.3      c         1/20    0 B/s  leaf
   └─ 10.0.0.4      d         1/20    0 B/s
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
