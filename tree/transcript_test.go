package tree_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/tree"
)

var rewrite = flag.Bool("rewrite", false, "write what the commands of the transcripts say now into testdata")

// A transcript is a list of commands, each followed by a line "----" and what it said, up to an empty line. The commands are
// the methods of script below.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(text) {
				t.Errorf("%s: says now\n%s", file, got)
			}
		})
	}
}

// play runs the commands of a transcript and returns it with what they say.
func play(text string) string {
	s := &script{}
	var out strings.Builder
	for _, part := range strings.Split(strings.TrimSpace(text), "\n\n") {
		input, _, isCommand := strings.Cut(part, "\n----")
		out.WriteString(input + "\n")
		if isCommand {
			out.WriteString("----\n")
			for line := range strings.SplitSeq(input, "\n") {
				if !strings.HasPrefix(line, "#") {
					out.WriteString(s.run(strings.Fields(line)))
				}
			}
		}
		out.WriteString("\n")
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// script holds what the commands of a transcript work on.
type script struct {
	tree   *tree.Tree
	forest *tree.Forest
}

func (s *script) run(words []string) string {
	commands := map[string]func(arguments) (string, error){
		"new": s.create, "join": s.join, "leave": s.leave, "fail": s.fail, "role": s.role, "report": s.report,
		"show": s.show, "backups": s.backups, "standbys": s.standbys, "snapshot": s.snapshot, "restore": s.restore,
		"forest": s.createForest, "machine": s.machine, "enter": s.enter, "exit": s.exit, "crash": s.crash, "steps": s.steps, "loads": s.loads,
	}
	command := commands[words[0]]
	if command == nil {
		return "no command " + words[0] + "\n"
	}
	out, err := command(parse(words[1:]))
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	if s.tree != nil {
		if err := s.tree.Check(); err != nil {
			return out + "violation: " + err.Error() + "\n"
		}
	}
	return out
}

// arguments are words, and values by their names.
type arguments struct {
	words []string
	named map[string]string
}

func parse(words []string) arguments {
	a := arguments{named: map[string]string{}}
	for _, w := range words {
		if name, value, ok := strings.Cut(w, "="); ok {
			a.named[name] = value
		} else {
			a.words = append(a.words, w)
		}
	}
	return a
}

func (a arguments) number(name string) int {
	n, _ := strconv.Atoi(a.named[name])
	return n
}

func (a arguments) role() (r tree.Role, err error) {
	if name := a.named["role"]; name != "" {
		err = r.UnmarshalText([]byte(name))
	}
	return r, err
}

func (s *script) create(a arguments) (out string, err error) {
	s.tree, err = tree.New(tree.Config{Stripes: a.number("stripes")})
	return "", err
}

// join takes many members: "a b c", or "m*7" for m0 to m6.
func (s *script) join(a arguments) (string, error) {
	role, err := a.role()
	if err != nil {
		return "", err
	}
	return each(a.words, func(id tree.ID) ([]tree.Change, error) {
		return s.tree.Join(tree.Member{ID: id, Zone: a.named["zone"], Role: role})
	})
}

func (s *script) leave(a arguments) (string, error) { return each(a.words, s.tree.Leave) }
func (s *script) fail(a arguments) (string, error)  { return each(a.words, s.tree.Fail) }

func (s *script) role(a arguments) (string, error) {
	role, err := a.role()
	if err != nil {
		return "", err
	}
	return each(a.words, func(id tree.ID) ([]tree.Change, error) { return s.tree.SetRole(id, role) })
}

// report says "m1 12,7": what m1 holds of each stripe.
func (s *script) report(a arguments) (string, error) {
	var held []int
	for n := range strings.SplitSeq(a.words[1], ",") {
		blocks, err := strconv.Atoi(n)
		if err != nil {
			return "", err
		}
		held = append(held, blocks)
	}
	return "", s.tree.Report(tree.ID(a.words[0]), held)
}

func (s *script) show(arguments) (string, error) { return draw(s.tree), nil }

func (s *script) backups(a arguments) (string, error) {
	var out strings.Builder
	for _, id := range a.words {
		for stripe := range s.tree.Stripes() {
			fmt.Fprintf(&out, "%s %d: %v\n", id, stripe, s.tree.Backups(tree.ID(id), stripe))
		}
	}
	return out.String(), nil
}

func (s *script) standbys(arguments) (string, error) {
	var out strings.Builder
	for stripe := range s.tree.Stripes() {
		fmt.Fprintf(&out, "%d: %v\n", stripe, s.tree.Standbys(stripe))
	}
	return out.String(), nil
}

// snapshot prints the JSON, a member a line.
func (s *script) snapshot(arguments) (string, error) {
	text, err := json.Marshal(s.tree.Snapshot())
	return strings.ReplaceAll(string(text), `{"id"`, "\n  "+`{"id"`) + "\n", err
}

func (s *script) restore(a arguments) (out string, err error) {
	restored, err := tree.Restore(s.tree.Snapshot(), uint64(a.number("term")))
	if err == nil {
		s.tree = restored
	}
	return "", err
}

func (s *script) createForest(a arguments) (out string, err error) {
	s.forest, err = tree.NewForest(tree.ForestConfig{Stripes: a.number("stripes"), Budget: a.number("budget")})
	return "", err
}

func (s *script) machine(a arguments) (string, error) {
	m := tree.Machine{Zone: a.named["zone"], Budget: a.number("budget"), Elsewhere: a.number("elsewhere"),
		Uplink: int64(a.number("uplink")), Draining: a.named["draining"] != ""}
	_, err := each(a.words, func(id tree.ID) ([]tree.Change, error) {
		m.ID = id
		return nil, s.forest.SetMachine(m)
	})
	return "", err
}

func (s *script) enter(a arguments) (string, error) {
	return each(a.words[1:], func(id tree.ID) ([]tree.Change, error) { return s.forest.Join(a.words[0], id) })
}

func (s *script) exit(a arguments) (string, error) {
	return each(a.words[1:], func(id tree.ID) ([]tree.Change, error) { return s.forest.Leave(a.words[0], id) })
}

func (s *script) crash(a arguments) (string, error) {
	changes, err := s.forest.Fail(tree.ID(a.words[0]))
	var out strings.Builder
	for _, c := range changes {
		out.WriteString(c.Image + ": " + describe(c.Change))
	}
	return out.String(), err
}

// steps corrects roles until all are right.
func (s *script) steps(arguments) (string, error) {
	var out strings.Builder
	for image, changes, ok := s.forest.Step(); ok; image, changes, ok = s.forest.Step() {
		fmt.Fprintf(&out, "%s\n", image)
		for _, c := range changes {
			out.WriteString("  " + describe(c))
		}
	}
	return out.String(), s.forest.Check()
}

func (s *script) loads(a arguments) (string, error) {
	var out strings.Builder
	for _, id := range a.words {
		fmt.Fprintf(&out, "%s: %d children in %v", id, s.forest.Load(tree.ID(id)), s.forest.Images(tree.ID(id)))
		for _, image := range s.forest.Images(tree.ID(id)) {
			m, _ := s.forest.Tree(image).Member(tree.ID(id))
			fmt.Fprintf(&out, " %v", m.Role)
		}
		out.WriteString("\n")
	}
	return out.String(), nil
}

// each does an operation for each name and describes the changes.
func each(words []string, do func(tree.ID) ([]tree.Change, error)) (string, error) {
	var out strings.Builder
	for _, word := range words {
		names := []string{word}
		if prefix, count, ok := strings.Cut(word, "*"); ok {
			n, _ := strconv.Atoi(count)
			names = slices.Repeat([]string{prefix}, n)
			for i := range names {
				names[i] += strconv.Itoa(i)
			}
		}
		for _, name := range names {
			changes, err := do(tree.ID(name))
			if err != nil {
				return out.String(), err
			}
			for _, c := range changes {
				out.WriteString(describe(c))
			}
		}
	}
	return out.String(), nil
}

func describe(c tree.Change) string {
	line := fmt.Sprintf("%v stripe %d: %s below %s", c.Epoch, c.Stripe, c.Child, name(c.Parent))
	if c.Level != tree.Leaf {
		line += fmt.Sprintf(", level %d", c.Level)
	}
	if c.Old != "" {
		line += ", drains " + string(c.Old)
	}
	if len(c.Backups) > 0 {
		line += fmt.Sprintf(", backups %v", c.Backups)
	}
	return line + "\n"
}

func name(id tree.ID) string {
	if id == tree.Registry {
		return "registry"
	}
	return string(id)
}

// draw shows the stripes; members that may have children there end on a slash.
func draw(t *tree.Tree) string {
	var out strings.Builder
	for stripe := range t.Stripes() {
		fmt.Fprintf(&out, "stripe %d\n", stripe)
		for id, depth := range t.Walk(stripe) {
			list, _ := t.Attachments(id)
			m, _ := t.Member(id)
			fmt.Fprintf(&out, "%s%s", strings.Repeat("  ", depth+1), id)
			if list[stripe].Level != tree.Leaf {
				out.WriteString("/")
			}
			if m.Zone != "" {
				out.WriteString(" " + m.Zone)
			}
			if m.Role != tree.RoleAny {
				out.WriteString(" " + m.Role.String())
			}
			out.WriteString("\n")
		}
	}
	return out.String()
}
