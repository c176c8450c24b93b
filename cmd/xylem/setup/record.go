package setup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/xylem-project/xylem/agent"
)

const recordFile = "record.json"

// record is what setup remembers of a node, in a directory beside containerd's configuration.
type record struct {
	dir   string
	Files []recorded `json:"files"`
	Dirs  []string   `json:"dirs,omitempty"` // that setup made, each before those in it
}

// recorded is a file that setup changed.
type recorded struct {
	Path     string      `json:"path"`
	Mode     fs.FileMode `json:"mode"`
	Existed  bool        `json:"existed"`
	Original []byte      `json:"original"` // without xylem's lines
	Written  []byte      `json:"written"`  // with them
}

// BackupDir is where setup keeps its record and copies of the files that it changed.
func BackupDir(configFile string) string {
	return filepath.Join(filepath.Dir(configFile), "xylem-setup")
}

func loadRecord(dir string) (*record, error) {
	r := &record{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("record of the last setup %s: %w", filepath.Join(dir, recordFile), err)
	}
	return r, nil
}

func (r *record) find(path string) *recorded {
	for i := range r.Files {
		if r.Files[i].Path == path {
			return &r.Files[i]
		}
	}
	return nil
}

// save writes the copies for people first, and the record, by which files are restored, last.
func (r *record) save() error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	for i, f := range r.Files {
		if !f.Existed {
			continue
		}
		copyFile := filepath.Join(r.dir, fmt.Sprintf("%d-%s.original", i, filepath.Base(f.Path)))
		if err := agent.WriteFile(copyFile, f.Original, 0o600); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return agent.WriteFile(filepath.Join(r.dir, recordFile), append(text, '\n'), 0o600)
}

// state is a file before and after setup. A text that is nil means no file.
type state struct {
	path     string
	mode     fs.FileMode
	current  []byte
	pristine []byte   // current without xylem's lines
	wanted   []byte   // what it shall be
	left     []string // xylem's lines that pristine still has, because somebody edited them
}

// look reads a file and takes out what the last setup put in.
func (r *record) look(path string) (*state, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 { // which stays one
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
	}
	s := &state{path: path, mode: 0o644}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	s.mode, s.current = info.Mode().Perm(), append([]byte{}, text...)
	r.takeOut(s)
	s.wanted = s.pristine
	return s, nil
}

func (r *record) takeOut(s *state) {
	f := r.find(s.path)
	switch {
	case f == nil || f.Existed && bytes.Equal(s.current, f.Original):
		s.pristine = s.current
	case bytes.Equal(s.current, f.Written):
		s.pristine = f.Original
	default:
		s.pristine, s.left = strip(f.Original, f.Written, s.current)
	}
	if f != nil && !f.Existed && len(bytes.TrimSpace(s.pristine)) == 0 {
		s.pristine = nil
	}
}

func (s *state) changed() bool {
	return !bytes.Equal(s.current, s.wanted) || (s.current == nil) != (s.wanted == nil)
}

// write makes the file what is wanted.
func (s *state) write() error {
	if s.wanted == nil {
		if err := os.Remove(s.path); err != nil {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	return agent.WriteFile(s.path, s.wanted, s.mode)
}

// missingDirs returns the directories that write will make, each before those in it.
func (s *state) missingDirs() []string {
	var missing []string
	for dir := filepath.Dir(s.path); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			slices.Reverse(missing)
			return missing
		}
		missing = append(missing, dir)
	}
}

// removeDirs removes those that setup made and that nobody else uses.
func (r *record) removeDirs() {
	for _, dir := range slices.Backward(r.Dirs) {
		_ = os.Remove(dir) // fails if something is in it
	}
}
