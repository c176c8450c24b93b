package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/xylem-project/xylem/scheduler/api"
)

// Guard lets requests to next that show a key which is for them; refuse answers the others.
func (k *Keys) Guard(next http.Handler, refuse func(http.ResponseWriter, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := k.authenticate(r)
		if err == nil {
			if r.Header.Get(api.HeaderNamespace) == "" && key.Namespaces[0] != "*" {
				r.Header.Set(api.HeaderNamespace, key.Namespaces[0])
			}
			err = key.allows(namespaceOf(r), manages(r))
		}
		if err != nil {
			k.log.Info("request refused", "from", r.RemoteAddr, "path", r.URL.Path, "err", err)
			if errors.Is(err, ErrUnknown) { // what was wrong is nobody's business but the operator's
				w.Header().Set("WWW-Authenticate", "Bearer")
				err = ErrUnknown
			}
			refuse(w, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func namespaceOf(r *http.Request) string {
	if ns := r.Header.Get(api.HeaderNamespace); ns != "" {
		return ns
	}
	return api.DefaultNamespace
}

// manages says whether a request does more than invoking and looking.
func manages(r *http.Request) bool {
	invokes := strings.HasSuffix(r.URL.Path, "/invocations") || strings.Contains(r.URL.Path, "/web/")
	return !invokes && r.Method != http.MethodGet && r.Method != http.MethodHead
}

// authenticate returns the key that a request shows.
func (k *Keys) authenticate(r *http.Request) (record, error) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch scheme {
	case "Bearer":
		id, secret, _ := strings.Cut(strings.TrimSpace(rest), ":")
		key, err := k.find(id)
		if err == nil && subtle.ConstantTimeCompare([]byte(secret), []byte(key.Secret)) != 1 {
			err = fmt.Errorf("%w: wrong secret for key %s", ErrUnknown, id)
		}
		return key, err
	case signatureScheme:
		return k.verify(r, rest)
	case "":
		return record{}, fmt.Errorf("%w: none shown", ErrUnknown)
	}
	return record{}, fmt.Errorf("%w: scheme %.40q, want Bearer or %s", ErrUnknown, scheme, signatureScheme)
}

const (
	signatureScheme = "AWS4-HMAC-SHA256"
	// maxSkew is how far the clock of who signs may be off, as at AWS.
	maxSkew = 5 * time.Minute
	// maxSigned bounds the body of a signed request, which has to be read to verify it.
	maxSigned = api.MaxPayload + 1
)

// signature is what a signed request says of its signature.
type signature struct {
	keyID, date, region, service string
	headers                      []string
	value                        string
}

// parseSignature reads "Credential=ID/date/region/service/aws4_request, SignedHeaders=a;b, Signature=hex".
func parseSignature(text string) (s signature, err error) {
	for field := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch name {
		case "Credential":
			part := strings.Split(value, "/")
			if len(part) != 5 || part[4] != "aws4_request" {
				return s, fmt.Errorf("%w: credential %.100q", ErrUnknown, value)
			}
			s.keyID, s.date, s.region, s.service = part[0], part[1], part[2], part[3]
		case "SignedHeaders":
			s.headers = strings.Split(value, ";")
		case "Signature":
			s.value = value
		}
	}
	if s.keyID == "" || s.value == "" || !slices.Contains(s.headers, "host") {
		return s, fmt.Errorf("%w: incomplete signature", ErrUnknown)
	}
	return s, nil
}

// verify checks a signature (AWS Signature Version 4) by making it anew.
func (k *Keys) verify(r *http.Request, text string) (record, error) {
	s, err := parseSignature(text)
	if err != nil {
		return record{}, err
	}
	key, err := k.find(s.keyID)
	if err != nil {
		return key, err
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > maxSkew || at.Format("20060102") != s.date {
		return key, fmt.Errorf("%w: X-Amz-Date %.40q is missing or more than %v off", ErrUnknown, r.Header.Get("X-Amz-Date"), maxSkew)
	}
	body, err := readBody(r)
	if err != nil {
		return key, err
	}
	want, err := sign(r.Context(), r, s, key, body, at)
	if err != nil {
		return key, err
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(s.value)) != 1 {
		return key, fmt.Errorf("%w: wrong signature by key %s", ErrUnknown, key.ID)
	}
	return key, nil
}

// readBody reads a request's body and puts it back.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxSigned))
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, err
}

// sign returns the signature of a request as who sent it made it.
func sign(ctx context.Context, r *http.Request, s signature, key record, body []byte, at time.Time) (string, error) {
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	copied := r.Clone(ctx)
	copied.URL.Host, copied.Header, copied.ContentLength = r.Host, http.Header{}, 0
	for _, name := range s.headers {
		name = http.CanonicalHeaderKey(name)
		if name == "Content-Length" {
			copied.ContentLength = r.ContentLength
		} else if values := r.Header.Values(name); len(values) > 0 {
			copied.Header[name] = values
		}
	}
	credentials := aws.Credentials{AccessKeyID: key.ID, SecretAccessKey: key.Secret}
	if err := v4.NewSigner().SignHTTP(ctx, credentials, copied, hash, s.service, s.region, at); err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	_, made, _ := strings.Cut(copied.Header.Get("Authorization"), " ")
	again, err := parseSignature(made)
	if err == nil && !slices.Equal(again.headers, s.headers) {
		err = fmt.Errorf("%w: signed headers %v, want %v", ErrUnknown, s.headers, again.headers)
	}
	return again.value, err
}
