package fuse

import (
	"log/slog"
	"time"
)

// FailureLog is failureLog.
type FailureLog struct{ *failureLog }

func NewFailureLog(log *slog.Logger, interval time.Duration) FailureLog {
	return FailureLog{newFailureLog(log, interval)}
}

func (l FailureLog) Failed(blob string, off int64, n int, err error) { l.failed(blob, off, n, err) }

// InitRequest returns the INIT request that the server keeps.
func InitRequest(s *Server) []byte { return s.conn.init }

// ParseMount is parseMount, HasKill is hasKill.
var (
	ParseMount = parseMount
	HasKill    = hasKill
)
