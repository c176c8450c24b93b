package registryproxy

import (
	"errors"
	"net/http"
	"strings"

	"github.com/xylem-project/xylem/blockfmt"
)

// maxChallenge bounds, in bytes, a challenge that is remembered.
const maxChallenge = 1 << 10

// heard remembers how the registry asks those for credentials who send none, or that it does not.
func (a *access) heard(t target, resp *Response) {
	if t.authorization != "" {
		return
	}
	c := ""
	if resp.Status == http.StatusUnauthorized {
		c = basicChallenge(resp.Header.Values("WWW-Authenticate"))
	}
	if c == "" {
		a.challenges.remove(t.host)
		return
	}
	a.challenges.set(t.host, c)
}

// basicChallenge returns the challenge that asks for a user and password, "" if there is none. Only those are of use while a registry
// is down: they are the same each time, so that it is known whether the registry accepted them. A token is another one each time, and
// clients that are asked for one go to its server, which may be down as well.
func basicChallenge(values []string) string {
	for _, v := range values {
		scheme, params, _ := strings.Cut(v, " ")
		if strings.EqualFold(scheme, "Basic") && len(v) <= maxChallenge && !strings.Contains(strings.ToLower(params), "bearer") {
			return v
		}
	}
	return ""
}

// challenge returns how t's registry asked last for credentials, "" if t has some, or may read without any, or the registry is not known
// to ask.
func (a *access) challenge(t target) string {
	if t.authorization != "" || t.repo != "" && a.granted(t, a.ttl+a.offline) {
		return ""
	}
	return a.asks(t.host)
}

// asks returns how a registry asked last for credentials, "" if it is not known to.
func (a *access) asks(host string) string {
	c, ok := a.challenges.get(host)
	if !ok || c.age() >= a.ttl+a.offline {
		return ""
	}
	return c.value
}

// orLogin makes an answer that asks for credentials, as the registry would, of an error that says that the registry is down: what is kept
// can be read by those whose credentials it has accepted, once they send them.
func (a *access) orLogin(t target, err error) error {
	var later RetryLater
	if !errors.Is(err, blockfmt.ErrTransient) || errors.As(err, &later) {
		return err
	}
	c := a.challenge(t)
	if c == "" {
		return err
	}
	login := refuse(http.StatusUnauthorized, codeUnauthorized, "%s does not answer; it asked for credentials before", t.host)
	login.header = http.Header{"Www-Authenticate": {c}}
	return login
}
