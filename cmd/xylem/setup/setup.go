package setup

import (
	"context"
	"os"
	"regexp"
	"slices"
)

// Result says what a run did, or would do.
type Result struct {
	Changes []Change `json:"changes"`
	Notes   []string `json:"notes,omitempty"` // what the user should know
	Backup  string   `json:"backup"`          // directory
	DryRun  bool     `json:"dryRun"`
}

// Change is one file.
type Change struct {
	Path   string `json:"path"`
	Action string `json:"action"` // create, edit, restore or remove
	Diff   string `json:"diff"`   // like that of diff -u
}

// Install makes containerd use xylem. It changes nothing if it returns an *Error.
func Install(ctx context.Context, o Options) (*Result, error) {
	p, err := newPlan(ctx, o)
	if err != nil {
		return nil, err
	}
	result := p.result(false)
	if len(result.Changes) == 0 || o.DryRun {
		return result, nil
	}
	next := &record{dir: p.record.dir, Dirs: p.record.Dirs}
	for _, s := range p.files {
		if s.current != nil && !s.changed() && p.record.find(s.path) == nil {
			continue
		}
		next.Dirs = append(next.Dirs, missingOf(s, next.Dirs)...)
		if s.wanted != nil && string(s.wanted) != string(s.pristine) {
			next.Files = append(next.Files, recorded{Path: s.path, Mode: s.mode, Existed: s.pristine != nil, Original: s.pristine, Written: s.wanted})
		}
	}
	if err := next.save(); err != nil {
		return nil, err
	}
	if err := p.write(); err != nil {
		return nil, err
	}
	next.removeDirs()
	return result, nil
}

func missingOf(s *state, known []string) []string {
	if s.wanted == nil {
		return nil
	}
	return slices.DeleteFunc(s.missingDirs(), func(dir string) bool { return slices.Contains(known, dir) })
}

var stillUsed = regexp.MustCompile(`snapshotter["']?\s*=\s*["']xylem["']`)

// Uninstall restores the files that Install changed. Where somebody changed them since, it takes out xylem's lines only.
func Uninstall(o Options) (*Result, error) {
	r, err := loadRecord(BackupDir(o.ConfigFile))
	if err != nil {
		return nil, err
	}
	p := &plan{Options: o, record: r}
	if err := p.others(); err != nil {
		return nil, err
	}
	for _, s := range p.files {
		if _, err := newDocument(s.pristine); err != nil {
			return nil, refuse("correct it; nothing was changed", "%s without xylem's settings: %w", s.path, err)
		}
		if f := r.find(s.path); s.changed() && string(s.current) != string(f.Written) {
			p.note("%s was edited since: only xylem's lines are taken out", s.path)
		}
		if stillUsed.Match(s.wanted) {
			p.note("%s still names the snapshotter xylem, which containerd will not know", s.path)
		}
	}
	result := p.result(true)
	if o.DryRun {
		return result, nil
	}
	if err := p.write(); err != nil {
		return nil, err
	}
	r.removeDirs()
	if len(r.Files) > 0 {
		return result, os.RemoveAll(r.dir)
	}
	return result, nil
}

func (p *plan) write() error {
	for _, s := range p.files {
		if !s.changed() {
			continue
		}
		if err := s.write(); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) result(restore bool) *Result {
	r := &Result{Changes: []Change{}, Notes: p.notes, Backup: p.record.dir, DryRun: p.DryRun}
	for _, s := range p.files {
		if !s.changed() {
			continue
		}
		action := "edit"
		switch {
		case s.current == nil:
			action = "create"
		case s.wanted == nil:
			action = "remove"
		case restore || string(s.wanted) == string(s.pristine):
			action = "restore"
		}
		r.Changes = append(r.Changes, Change{s.path, action, unified(s.path, s.current, s.wanted)})
	}
	return r
}
