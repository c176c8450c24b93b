package function_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/function"
	"github.com/xylem-project/xylem/scheduler/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// images resolves every tag to what it is named here, until it is changed.
type images map[string]api.ImageAnswer

func (i images) Resolve(_ context.Context, image string) (api.ImageAnswer, error) {
	answer, ok := i[image]
	if !ok {
		return answer, fmt.Errorf("image %s: %w: not in the registry", image, function.ErrInvalid)
	}
	return answer, nil
}

func image(text string) api.ImageAnswer {
	return api.ImageAnswer{Digest: digest.FromString(text), Entrypoint: []string{"/app"}}
}

// inWorld runs a test with a registry that follows a store in memory.
func inWorld(t *testing.T, test func(t *testing.T, ctx context.Context, r *function.Registry, known images)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		known := images{"r.example/a:1": image("one"), "r.example/a:2": image("two"), "r.example/data:1": {Digest: digest.FromString("data")}}
		r := function.New(store.NewMemory(), known, slog.New(slog.DiscardHandler))
		go r.Run(ctx)
		synctest.Wait()
		test(t, ctx, r, known)
		cancel()
		synctest.Wait()
	})
}

func TestVersionsAndAliases(t *testing.T) {
	inWorld(t, func(t *testing.T, ctx context.Context, r *function.Registry, known images) {
		spec := api.FunctionSpec{Name: "f", Image: "r.example/a:1"}
		first, err := r.Create(ctx, spec)
		if err != nil || first.Version != 1 || first.Digest != digest.FromString("one") || first.Namespace != "default" {
			t.Fatalf("%+v, %v", first, err)
		}
		known["r.example/a:1"] = image("moved")
		second, err := r.Update(ctx, spec)
		if err != nil || second.Version != 2 || second.Digest != digest.FromString("moved") {
			t.Fatalf("%+v, %v", second, err)
		}
		if err := r.SetAlias(ctx, "default", "f", "stable", 1); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for qualifier, want := range map[string]int{"": 2, "$LATEST": 2, "1": 1, "2": 2, "stable": 1} {
			if got, err := r.Lookup("default", "f", qualifier); err != nil || got.Version != want {
				t.Errorf("%q is version %d, %v, want %d", qualifier, got.Version, err, want)
			}
		}
		for _, qualifier := range []string{"3", "0", "-1", "canary", "stable ", "1.0"} {
			if _, err := r.Lookup("default", "f", qualifier); !errors.Is(err, function.ErrNotFound) {
				t.Errorf("%q: %v", qualifier, err)
			}
		}
		if err := r.DeleteAlias(ctx, "default", "f", "stable"); err != nil {
			t.Fatal(err)
		}
		if err := r.Delete(ctx, "default", "f"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if list, err := r.List(""); err != nil || len(list) != 0 {
			t.Errorf("after all were deleted: %v, %v", list, err)
		}
	})
}

// Versions that nobody names go when there are too many, and a number is never used twice.
func TestOldVersionsGo(t *testing.T) {
	inWorld(t, func(t *testing.T, ctx context.Context, r *function.Registry, _ images) {
		spec := api.FunctionSpec{Name: "f", Image: "r.example/a:1"}
		if _, err := r.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if err := r.SetAlias(ctx, "default", "f", "first", 1); err != nil {
			t.Fatal(err)
		}
		for i := 2; i <= function.MaxVersions+10; i++ {
			if f, err := r.Update(ctx, spec); err != nil || f.Version != i {
				t.Fatalf("version %d: %+v, %v", i, f, err)
			}
		}
		synctest.Wait()
		d, err := r.Describe("default", "f")
		if err != nil || len(d.Versions) != function.MaxVersions {
			t.Fatalf("%d versions, %v, want %d", len(d.Versions), err, function.MaxVersions)
		}
		if d.Versions[0].Version != function.MaxVersions+10 || d.Versions[len(d.Versions)-1].Version != 1 {
			t.Errorf("versions %d to %d, want the newest and the one with an alias", d.Versions[0].Version, d.Versions[len(d.Versions)-1].Version)
		}
	})
}

func TestRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, ctx context.Context, r *function.Registry, _ images) {
		if _, err := r.Create(ctx, api.FunctionSpec{Name: "f", Image: "r.example/a:1"}); err != nil {
			t.Fatal(err)
		}
		create := func(s api.FunctionSpec) error { _, err := r.Create(ctx, s); return err }
		update := func(s api.FunctionSpec) error { _, err := r.Update(ctx, s); return err }
		for _, c := range []struct {
			what string
			err  error
			kind error
			says string
		}{
			{"a name twice", create(api.FunctionSpec{Name: "f", Image: "r.example/a:1"}), function.ErrExists, "update or delete it"},
			{"an update of none", update(api.FunctionSpec{Name: "g", Image: "r.example/a:1"}), function.ErrNotFound, "default/g"},
			{"an image that is none", create(api.FunctionSpec{Name: "g", Image: "r.example/x:1"}), function.ErrInvalid, "r.example/x:1: "},
			{"an image without a program", create(api.FunctionSpec{Name: "g", Image: "r.example/data:1"}), function.ErrInvalid, "say which program to run"},
			{"a spec that cannot be", create(api.FunctionSpec{Name: "g", Image: "r.example/a:1", Memory: 1}), function.ErrInvalid, "memory"},
			{"an alias of no version", r.SetAlias(ctx, "default", "f", "x", 7), function.ErrNotFound, "no version 7"},
			{"an alias like a version", r.SetAlias(ctx, "default", "f", "7", 1), function.ErrInvalid, "is a number"},
			{"an alias of nothing", r.SetAlias(ctx, "default", "g", "x", 1), function.ErrNotFound, "default/g"},
			{"an alias that is none", r.DeleteAlias(ctx, "default", "f", "x"), function.ErrNotFound, "no alias"},
			{"a function that is none", r.Delete(ctx, "default", "g"), function.ErrNotFound, "default/g"},
		} {
			if !errors.Is(c.err, c.kind) || !strings.Contains(c.err.Error(), c.says) {
				t.Errorf("%s: %v, want %v with %q", c.what, c.err, c.kind, c.says)
			}
		}
		if err := create(api.FunctionSpec{Name: "g", Image: "r.example/data:1", Command: []string{"/run"}}); err != nil {
			t.Errorf("a command makes up for an image without a program: %v", err)
		}
	})
}

// Of two who change a function at once one is told so, and nothing is lost.
func TestAtTheSameTime(t *testing.T) {
	inWorld(t, func(t *testing.T, ctx context.Context, r *function.Registry, _ images) {
		spec := api.FunctionSpec{Name: "f", Image: "r.example/a:1"}
		if _, err := r.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
		results := make(chan error)
		for range 8 {
			go func() { _, err := r.Update(ctx, spec); results <- err }()
		}
		done := 0
		for range 8 {
			if err := <-results; err == nil {
				done++
			} else if !errors.Is(err, function.ErrBusy) {
				t.Error(err)
			}
		}
		synctest.Wait()
		if d, err := r.Describe("default", "f"); err != nil || len(d.Versions) != done+1 || d.Latest != done+1 {
			t.Errorf("%d updates succeeded, there are %d versions up to %d, %v", done, len(d.Versions), d.Latest, err)
		}
	})
}

func TestLookupBeforeTheStoreWasRead(t *testing.T) {
	r := function.New(store.NewMemory(), images{}, slog.New(slog.DiscardHandler))
	if _, err := r.Lookup("default", "f", ""); !errors.Is(err, function.ErrNotReady) {
		t.Error(err)
	}
}
