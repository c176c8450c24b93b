package registryproxy_test

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/registryproxy"
)

func TestParseRange(t *testing.T) {
	const whole, unsatisfiable = "whole", "416"
	for _, test := range []struct {
		header string
		size   int64
		want   string // "off+n", whole or 416
	}{
		{"bytes=0-0", 10, "0+1"},
		{"bytes=0-9", 10, "0+10"},
		{"bytes=3-", 10, "3+7"},
		{"bytes=9-", 10, "9+1"},
		{"bytes=5-100", 10, "5+5"},
		{"bytes=-1", 10, "9+1"},
		{"bytes=-10", 10, "0+10"},
		{"bytes=-11", 10, "0+10"},
		{"Bytes=1-2", 10, "1+2"},
		{"bytes= 1-2 ", 10, "1+2"},
		{"bytes=0-18446744073709551616", 10, "0+10"},
		{"bytes=-18446744073709551616", 10, "0+10"},
		{"bytes=00001-00002", 10, "1+2"},
		{"bytes=10-", 10, unsatisfiable},
		{"bytes=10-11", 10, unsatisfiable},
		{"bytes=18446744073709551616-", 10, unsatisfiable},
		{"bytes=-0", 10, unsatisfiable},
		{"bytes=0-", 0, unsatisfiable},
		{"bytes=-1", 0, unsatisfiable},
		{"bytes=2-1", 10, whole},
		{"bytes=-", 10, whole},
		{"bytes=", 10, whole},
		{"bytes", 10, whole},
		{"", 10, whole},
		{"=", 10, whole},
		{"bytes=a-b", 10, whole},
		{"bytes=1", 10, whole},
		{"bytes=+1-2", 10, whole},
		{"bytes=1--2", 10, whole},
		{"bytes=--1", 10, whole},
		{"bytes=0x1-2", 10, whole},
		{"bytes=1-2-3", 10, whole},
		{"bytes=1 -2", 10, whole},
		{"bytes=0-1,3-4", 10, whole},
		{"bytes=0-1,", 10, whole},
		{"bytes=" + strings.Repeat("0-,", 10_000), 10, whole},
		{"items=0-1", 10, whole},
		{"bytes 0-1", 10, whole},
		{"bytes=\u0661-\u0662", 10, whole},
	} {
		off, n, partial, err := registryproxy.ParseRange(test.header, test.size)
		got := whole
		switch {
		case errors.Is(err, registryproxy.ErrUnsatisfiable):
			got = unsatisfiable
		case partial:
			got = strconv.FormatInt(off, 10) + "+" + strconv.FormatInt(n, 10)
		case off != 0 || n != test.size || err != nil:
			got = "nonsense"
		}
		if got != test.want {
			t.Errorf("%.60q of %d bytes: %s, want %s", test.header, test.size, got, test.want)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=-5", "bytes=5-", "bytes=0-1,3-4", "bytes=9223372036854775807-", "x"} {
		f.Add(s, int64(1000))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		off, n, partial, err := registryproxy.ParseRange(header, size)
		switch {
		case err != nil && (partial || !errors.Is(err, registryproxy.ErrUnsatisfiable)):
			t.Errorf("%q: %v", header, err)
		case err == nil && !partial && (off != 0 || n != size):
			t.Errorf("%q of %d: %d bytes at %d for the whole", header, size, n, off)
		case partial && (off < 0 || n <= 0 || n > size || off > size-n):
			t.Errorf("%q of %d: %d bytes at %d", header, size, n, off)
		}
	})
}

// hosts are values of ns and what they name, "" for those that are refused.
var hosts = map[string]string{
	"docker.io":                     "docker.io",
	"Docker.IO":                     "docker.io",
	"registry.example:5000":         "registry.example:5000",
	"localhost:5000":                "localhost:5000",
	"127.0.0.1:5000":                "127.0.0.1:5000",
	"10.1.2.3":                      "10.1.2.3",
	"[::1]:5000":                    "[::1]:5000",
	"[2001:db8::1]":                 "[2001:db8::1]",
	"a-b.c1":                        "a-b.c1",
	"xn--bcher-kva.example":         "xn--bcher-kva.example",
	"":                              "",
	".":                             "",
	"..":                            "",
	"../etc":                        "",
	"a..b":                          "",
	"a.":                            "",
	"-a.b":                          "",
	"a-.b":                          "",
	"a_b.c":                         "",
	"a/b":                           "",
	"a%2fb":                         "",
	"a\\b":                          "",
	"a b":                           "",
	"a\tb":                          "",
	"a\r\nHost: b":                  "",
	"a\x00b":                        "",
	"bücher.example":                "",
	"http://a":                      "",
	"user@a":                        "",
	"user:password@a":               "",
	"a@b:80":                        "",
	"a?b":                           "",
	"a#b":                           "",
	"a:":                            "",
	"a:0":                           "",
	"a:00080":                       "",
	"a:65536":                       "",
	"a:-1":                          "",
	"a:+80":                         "",
	"a:http":                        "",
	"a:80:90":                       "",
	":80":                           "",
	"[::1":                          "",
	"[::1]x":                        "",
	"[::1]:":                        "",
	"[a]":                           "",
	"[127.0.0.1]":                   "",
	"[fe80::1%25eth0]":              "",
	"[fe80::1%eth0]":                "",
	"::1":                           "",
	"169.254.169.254":               "",
	"169.254.169.254:80":            "",
	"169.254.0.1":                   "",
	"[fe80::1]":                     "",
	"[::ffff:169.254.169.254]":      "",
	"[::ffff:a9fe:a9fe]:80":         "",
	"[fd00:ec2::254]":               "",
	"100.100.100.200":               "",
	"168.63.129.16":                 "",
	"metadata.google.internal":      "",
	"METADATA.google.internal":      "",
	"metadata":                      "",
	"0.0.0.0":                       "",
	"[::]:5000":                     "",
	"224.0.0.1":                     "",
	"[ff02::1]":                     "",
	"255.255.255.255":               "",
	"2852039166":                    "",
	"0xa9fea9fe":                    "",
	"0xa9.0xfe.0xa9.0xfe":           "",
	"0251.0376.0251.0376":           "",
	"169.254.43518":                 "",
	"169.254.169.254.":              "",
	strings.Repeat("a.", 127) + "a": "",
	strings.Repeat("a", 300):        "",
}

func TestNamespace(t *testing.T) {
	for ns, want := range hosts {
		got, err := registryproxy.Namespace(url.Values{"ns": {ns}}, "default.example")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.80q: %q, %v; want %q", ns, got, err, want)
		}
	}
	if got, err := registryproxy.Namespace(url.Values{}, "default.example"); got != "default.example" || err != nil {
		t.Errorf("none: %q, %v", got, err)
	}
	if _, err := registryproxy.Namespace(url.Values{"ns": {"a.example", "b.example"}}, ""); err == nil {
		t.Error("two are not refused")
	}
}

func FuzzParseHost(f *testing.F) {
	for ns := range hosts {
		f.Add(ns)
	}
	f.Fuzz(func(t *testing.T, ns string) {
		got, err := registryproxy.ParseHost(ns)
		if err != nil {
			return
		}
		u, err := url.Parse("https://" + got + "/v2/")
		if err != nil || u.Host != got || u.User != nil || u.Path != "/v2/" || u.RawQuery != "" || u.Fragment != "" {
			t.Errorf("%q is the host of %v, %v", got, u, err)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && !registryproxy.MayBeRegistry(addr) {
			t.Errorf("%q is let through", got)
		}
		if again, err := registryproxy.ParseHost(got); again != got || err != nil {
			t.Errorf("%q becomes %q, %v", got, again, err)
		}
	})
}
