package registry

import "strings"

// challenge is one WWW-Authenticate challenge: scheme and parameter names in lower case.
type challenge struct {
	scheme string
	params map[string]string
}

// pickChallenge returns the first challenge that is answered here: bearer, else basic.
func pickChallenge(headers []string) (challenge, bool) {
	var basic *challenge
	for _, h := range headers {
		for _, c := range parseChallenges(h) {
			switch {
			case c.scheme == "bearer" && c.params["realm"] != "":
				return c, true
			case c.scheme == "basic" && basic == nil:
				basic = &c
			}
		}
	}
	if basic != nil {
		return *basic, true
	}
	return challenge{}, false
}

// parseChallenges reads a WWW-Authenticate value by RFC 9110, section 11.6.1: challenges separated by commas, each a
// scheme and parameters, which are separated by commas too. What it does not understand it skips.
func parseChallenges(s string) []challenge {
	var all []challenge
	for s = strings.TrimLeft(s, " \t,"); s != ""; s = strings.TrimLeft(s, " \t,") {
		word, rest := cutToken(s)
		if word == "" { // not a token: skip a byte
			s = s[1:]
			continue
		}
		rest = strings.TrimLeft(rest, " \t")
		value, isParam := strings.CutPrefix(rest, "=")
		if !isParam {
			all = append(all, challenge{strings.ToLower(word), map[string]string{}})
			s = rest
			continue
		}
		value, s = cutValue(strings.TrimLeft(value, " \t"))
		if len(all) > 0 {
			all[len(all)-1].params[strings.ToLower(word)] = value
		}
	}
	return all
}

func cutToken(s string) (token, rest string) {
	for i := range len(s) {
		if strings.IndexByte(" \t,=\"", s[i]) >= 0 {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// cutValue reads a token or a quoted string.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return cutToken(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}
