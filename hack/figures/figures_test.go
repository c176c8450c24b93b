package figures

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestFigures(t *testing.T) {
	figures := []Figure{
		Summary("odd", "s", []float64{3, 1, 2}),
		Summary("even", "s", []float64{4, 1, 2, 3}),
		Ratio("ratio", []float64{1, 9, 4}, []float64{2, 3, 4}),
	}
	want := []Figure{{"odd", 2, "s", 3, 1, 3}, {"even", 2.5, "s", 4, 1, 4}, {"ratio", 1, "ratio", 3, 0.5, 3}}
	path := filepath.Join(t.TempDir(), "out", "figures.json")
	if err := WriteFigures(path, figures); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []Figure
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}
