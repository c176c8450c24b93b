// Package figures holds what the benchmarks and the demo print: medians of samples, result files, and the tables of docs/benchmarks.md.
package figures

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Figure is one line of a result file.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"` // median
	Unit  string  `json:"unit"`
	N     int     `json:"n"`
	Min   float64 `json:"min"`
	Max   float64 `json:"max"`
}

// Summary is the figure of some samples, at least one.
func Summary(name, unit string, samples []float64) Figure {
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	return Figure{Name: name, Unit: unit, N: n, Min: sorted[0], Max: sorted[n-1], Value: (sorted[(n-1)/2] + sorted[n/2]) / 2}
}

// Ratio is the figure of a to b, where a[i] and b[i] were measured in turn.
func Ratio(name string, a, b []float64) Figure {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return Summary(name, "ratio", ratios)
}

// Seconds converts times to samples.
func Seconds(times []time.Duration) []float64 {
	s := make([]float64, len(times))
	for i, t := range times {
		s[i] = t.Seconds()
	}
	return s
}

// WriteFigures writes a result file, making its directory.
func WriteFigures(path string, figures []Figure) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
