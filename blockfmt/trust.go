package blockfmt

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AnnotationSignature on a block image's manifest: base64 of the converter's ed25519 signature over the manifest's bytes
// with this annotation's value replaced by the empty string.
const AnnotationSignature = "dev.xylem.signature"

// Sign returns the manifest of a block image with the converter's signature in it. Deterministic.
func Sign(manifest []byte, key ed25519.PrivateKey) ([]byte, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("sign manifest: %w", err)
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[AnnotationSignature] = ""
	unsigned, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	m.Annotations[AnnotationSignature] = base64.StdEncoding.EncodeToString(ed25519.Sign(key, unsigned))
	return json.Marshal(m)
}

// VerifySignature reports whether one of the trusted converters signed the manifest; it returns ErrDenied if not.
func VerifySignature(manifest []byte, trusted []ed25519.PublicKey) error {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		return fmt.Errorf("signature of block image: %w: %w", err, ErrCorrupt)
	}
	value := m.Annotations[AnnotationSignature]
	signature, err := base64.StdEncoding.DecodeString(value)
	if err != nil || len(signature) != ed25519.SignatureSize || bytes.Count(manifest, []byte(value)) != 1 {
		return fmt.Errorf("block image carries no signature of a converter: %w", ErrDenied)
	}
	unsigned := bytes.Replace(manifest, []byte(value), nil, 1)
	for _, key := range trusted {
		if len(key) == ed25519.PublicKeySize && ed25519.Verify(key, unsigned, signature) {
			return nil
		}
	}
	return fmt.Errorf("block image is signed by a converter that is not trusted here: %w", ErrDenied)
}
