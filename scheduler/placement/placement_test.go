package placement

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func build(t testing.TB, name string, cfg Config, instances int) Policy {
	t.Helper()
	p, err := New(name, cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range instances {
		p.Add(Instance(i))
	}
	return p
}

func TestUnknownPolicyListsTheNames(t *testing.T) {
	_, err := New("sticky", Config{})
	if !errors.Is(err, ErrConfig) {
		t.Fatalf("got %v", err)
	}
	for _, name := range Names() {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not name %s", err, name)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"bound of another policy": {LoadBound: 1.25},
		"spill of another policy": {Spill: 2},
		"warm of another policy":  {Warm: 2},
		"negative colours":        {Colours: -1},
	} {
		if _, err := New(NameHashSlots, cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, cfg := range map[string]Config{"bound of 1": {LoadBound: 1}, "negative spill": {Spill: -1}, "negative warm": {Warm: -1}} {
		if _, err := New(NameAdaptive, cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// moved returns the part of so many known colours that move when one instance is added to so many.
func movedFraction(t *testing.T, p Policy, colours, instances int) (fraction float64, moves Moves) {
	t.Helper()
	for i := range colours {
		p.Pick(fmt.Sprint("colour-", i))
	}
	moves = p.Add(Instance(instances))
	n := 0
	for _, m := range moves {
		n += len(m.Colours)
	}
	return float64(n) / float64(colours), moves
}

func TestScaleOutMovesTheNewInstancesShare(t *testing.T) {
	for _, name := range []string{NameConsistentHash, NameHashSlots, NameLeastAssigned, NameAdaptive} {
		t.Run(name, func(t *testing.T) {
			fraction, moves := movedFraction(t, build(t, name, Config{}, 24), 10000, 24)
			if fraction > 1.0/25+0.02 || fraction < 1.0/25-0.02 {
				t.Errorf("%.3f of the colours moved, want about 1/25", fraction)
			}
			slots := 0
			for _, m := range moves {
				slots += len(m.Slots)
				if m.To != 24 {
					t.Errorf("%d colours moved from %d to %d, which is not new", len(m.Colours), m.From, m.To)
				}
			}
			if want := Slots / 25; (name == NameHashSlots || name == NameAdaptive) && slots != want {
				t.Errorf("%d hash slots moved, want %d", slots, want)
			}
		})
	}
}

// What an instance had is spread over the others when it goes, none of which gives anything away.
func TestScaleInMovesTheRemovedInstancesColours(t *testing.T) {
	for _, name := range []string{NameConsistentHash, NameHashSlots, NameLeastAssigned, NameAdaptive} {
		t.Run(name, func(t *testing.T) {
			p := build(t, name, Config{}, 25)
			had := 0
			for i := range 10000 {
				if id, _ := p.Pick(fmt.Sprint("colour-", i)); id == 7 {
					had++
				}
			}
			moved, heirs := 0, map[Instance]int{}
			for _, m := range p.Remove(7) {
				moved += len(m.Colours)
				heirs[m.To] += len(m.Colours)
				if m.From != 7 {
					t.Errorf("%d colours moved from %d", len(m.Colours), m.From)
				}
			}
			if moved != had || had == 0 {
				t.Errorf("%d colours moved, the instance had %d", moved, had)
			}
			for id, n := range heirs {
				if n > had/2 {
					t.Errorf("%d of %d colours went to instance %d", n, had, id)
				}
			}
		})
	}
}
