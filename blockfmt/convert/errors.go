package convert

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/xylem-project/xylem/blockfmt"
)

// hasKind says whether err tells its cause already: one of blockfmt's kinds, a cancelled context or a fault of this machine.
func hasKind(err error) bool {
	var errno syscall.Errno
	for _, kind := range []error{
		blockfmt.ErrNotFound, blockfmt.ErrCorrupt, blockfmt.ErrTransient, blockfmt.ErrDenied, blockfmt.ErrUnsupported,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return errors.As(err, &errno)
}

// asCorrupt is for errors of parsers and decompressors: unless the reader beneath them failed, the data are wrong.
func asCorrupt(err error) error {
	if err == nil || hasKind(err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, blockfmt.ErrCorrupt)
}

// isNetwork says whether err comes from a connection rather than from a local file.
func isNetwork(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}
