package api

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A Token lets agents join a cluster. Its text form is a secret.
type Token struct {
	ID     string // 16 hex digits; no secret
	Secret string // 32 hex digits
	Pin    [32]byte
}

const tokenPrefix = "xylem1"

// ErrToken says that a text is no join token.
var ErrToken = errors.New("not a join token, which looks like " + tokenPrefix + ".ID.SECRET.PIN")

// String returns the text form.
func (t Token) String() string {
	return strings.Join([]string{tokenPrefix, t.ID, t.Secret, hex.EncodeToString(t.Pin[:])}, ".")
}

// ParseToken is the inverse of String; space around the text does not matter.
func ParseToken(text string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) != 4 || parts[0] != tokenPrefix || !isHex(parts[1], 16) || !isHex(parts[2], 32) || !isHex(parts[3], 64) {
		return Token{}, ErrToken // not what it says: that may be a secret
	}
	t := Token{ID: parts[1], Secret: parts[2]}
	if _, err := hex.Decode(t.Pin[:], []byte(parts[3])); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return t, nil
}

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}
