package main

import (
	"slices"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	tests := []struct {
		name    string
		events  []string
		summary string
		ok      bool
		prints  []string
		hides   []string
	}{{
		name: "passed",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}`,
			`{"Action":"pass","Package":"p","Test":"TestA/sub"}`,
			`{"Action":"pass","Package":"p","Test":"TestA"}`,
			`{"Action":"pass","Package":"p","Elapsed":1.25}`,
			`{"Action":"skip","Package":"without/tests"}`,
		},
		summary: "2 passed, 0 failed, 0 skipped", ok: true,
		prints: []string{"pass p 1.2s\n"}, hides: []string{"chatter", "without/tests"},
	}, {
		name: "failed",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"a.go:1: wrong\n"}`,
			`{"Action":"output","Package":"p","Output":"FAIL\n"}`,
			`{"Action":"fail","Package":"p","Test":"TestA"}`,
			`{"Action":"fail","Package":"p"}`,
		},
		summary: "0 passed, 1 failed, 0 skipped",
		prints:  []string{"a.go:1: wrong\n", "fail p"},
	}, {
		name: "skipped is not OK",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"no root\n"}`,
			`{"Action":"skip","Package":"p","Test":"TestA"}`,
			`{"Action":"pass","Package":"p"}`,
		},
		summary: "0 passed, 0 failed, 1 skipped",
		prints:  []string{"no root\n"},
	}, {
		name: "does not compile",
		events: []string{
			`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:3: undefined: x\n"}`,
			`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
			`{"Action":"output","Package":"p","Output":"FAIL p [build failed]\n"}`,
			`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
		},
		summary: "0 passed, 1 failed, 0 skipped",
		prints:  []string{"p.go:3: undefined: x\n", "fail p"},
	}, {
		name: "process dies",
		events: []string{
			`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}`,
			`{"Action":"output","Package":"p","Output":"exit status 2\n"}`,
			`{"Action":"fail","Package":"p"}`,
		},
		summary: "0 passed, 1 failed, 0 skipped",
		prints:  []string{"panic: boom\n", "exit status 2\n"},
	}, {
		name:    "words of the go command",
		events:  []string{`go: no such tool`},
		summary: "0 passed, 0 failed, 0 skipped", ok: true,
		prints: []string{"go: no such tool\n"},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			r := NewReport(&out)
			if err := r.Read(strings.NewReader(strings.Join(test.events, "\n") + "\n")); err != nil {
				t.Fatal(err)
			}
			if r.Summary() != test.summary || r.OK() != test.ok {
				t.Errorf("got %q, OK %v; want %q, %v", r.Summary(), r.OK(), test.summary, test.ok)
			}
			for _, s := range test.prints {
				if !strings.Contains(out.String(), s) {
					t.Errorf("prints %q, without %q", out.String(), s)
				}
			}
			for _, s := range test.hides {
				if strings.Contains(out.String(), s) {
					t.Errorf("prints %q, with %q", out.String(), s)
				}
			}
		})
	}
}

func TestFuzzFuncs(t *testing.T) {
	src := "package p\nfunc FuzzA(f *testing.F) {}\nfunc TestB(t *testing.T) {}\nfunc (x T) FuzzC() {}\nfunc FuzzD(f *testing.F) {}\n"
	got, err := fuzzFuncs("x_test.go", src)
	if want := []string{"FuzzA", "FuzzD"}; err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
}
