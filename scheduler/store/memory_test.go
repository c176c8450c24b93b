package store_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/scheduler/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	storetest.Store(t, func(*testing.T) store.Store { return store.NewMemory() })
}
