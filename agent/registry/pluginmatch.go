package registry

import (
	"fmt"
	"net"
	"path"
	"strings"
)

// imagePattern matches images as the kubelet does: as many parts of the domain, each of which may be a glob; the same port, or
// none on both sides; and a path that begins with the pattern's.
type imagePattern struct {
	domain []string
	port   string
	path   string // with its leading slash, or empty
}

func parseImagePattern(text string) (imagePattern, error) {
	p := splitImage(text)
	if p.domain[0] == "" || strings.Contains(text, "://") || strings.ContainsAny(text, " \t\r\n") {
		return p, fmt.Errorf("%.80q is no pattern of images, such as *.registry.example:5000/path", text)
	}
	for _, part := range p.domain {
		if _, err := path.Match(part, ""); err != nil {
			return p, fmt.Errorf("%.80q is no pattern of images: %w", text, err)
		}
	}
	if strings.ContainsAny(p.port, "*?") {
		return p, fmt.Errorf("%.80q is no pattern of images: ports have no wildcards", text)
	}
	return p, nil
}

func splitImage(text string) imagePattern {
	host, rest := text, ""
	if i := strings.IndexByte(text, '/'); i >= 0 {
		host, rest = text[:i], text[i:]
	}
	port := ""
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	}
	return imagePattern{strings.Split(host, "."), port, rest}
}

// matches says whether the pattern matches an image, which is named with its registry and without tag and digest.
func (p imagePattern) matches(image string) bool {
	i := splitImage(image)
	if len(p.domain) != len(i.domain) || p.port != i.port || !strings.HasPrefix(i.path, p.path) {
		return false
	}
	for n, part := range p.domain {
		if ok, err := path.Match(part, i.domain[n]); err != nil || !ok {
			return false
		}
	}
	return true
}

// parseAuthKey parses a key of an answer's credentials: a pattern that may be written as in docker's configuration, with a
// scheme and with /v1/ or /v2/ before the path.
func parseAuthKey(text string) (imagePattern, error) {
	for _, scheme := range []string{"https://", "http://"} {
		text = strings.TrimPrefix(text, scheme)
	}
	host, rest, _ := strings.Cut(text, "/")
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if v := strings.SplitAfterN(rest, "/", 2); v[0] == "v1/" || v[0] == "v2/" {
		rest = v[1]
	}
	if rest != "" {
		host += "/" + rest
	}
	return parseImagePattern(host)
}
