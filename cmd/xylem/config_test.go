package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/scheduler"
)

func TestConfigIsStrict(t *testing.T) {
	tests := []struct{ name, text, err string }{
		{"unknown key", "root = \"/r\"\ncache_bugdet = \"1GiB\"\n", `line 2: there is no key "cache_bugdet"`},
		{"unknown nested key", "[registries.\"example.com\"]\nplain = true\n", `line 2: there is no key "registries.example.com.plain"`},
		{"wrong type", "connections = \"many\"\n", "line 1"},
		{"wrong size", "cache_budget = \"40 apples\"\n", "40 apples"},
		{"wrong duration", "read_timeout = \"soon\"\n", "soon"},
		{"no TOML", "this is no TOML\n", "line 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			config := agent.Default()
			err := decodeConfig(strings.NewReader(test.text), &config)
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Fatalf("got %v, want %q", err, test.err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %q", err)
			}
		})
	}
}

func TestConfigKeepsDefaultsAndTakesValues(t *testing.T) {
	config := agent.Default()
	text := "cache_budget = \"3GiB\"\nread_timeout = \"1m30s\"\ntrusted_keys = [\"/k.pub\"]\n[registries.\"r.example:5000\"]\nplain_http = true\n"
	if err := decodeConfig(strings.NewReader(text), &config); err != nil {
		t.Fatal(err)
	}
	want := agent.Default()
	want.CacheBudget, want.ReadTimeout.Duration, want.TrustedKeys = 3<<30, 90*time.Second, []string{"/k.pub"}
	want.Registries = map[string]agent.RegistryConfig{"r.example:5000": {PlainHTTP: true}}
	if !reflect.DeepEqual(config, want) {
		t.Errorf("got %+v, want %+v", config, want)
	}
}

// What --print-config prints is a configuration file that means the same.
func TestPrintConfigRoundTrip(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(file, []byte("root = \"/from/file\"\nconnections = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	args := []string{"--config", file, "--state", "/from/flag", "agent", "--admin", "", "--cache-budget", "7MiB", "--mount-way", "loop", "--print-config"}
	if code := run(t.Context(), stdio{nil, &out, &stderr}, args); code != 0 {
		t.Fatalf("exit code %d, stderr %q", code, stderr.String())
	}
	var got agent.Config
	if err := decodeConfig(&out, &got); err != nil {
		t.Fatal(err)
	}
	want := agent.Default()
	want.Root, want.State, want.Admin, want.CacheBudget, want.MountWay, want.Connections = "/from/file", "/from/flag", "", 7<<20, "loop", 3
	got.TrustedKeys, got.Registries, got.Schedulers, got.Advertise = nil, nil, nil, nil // empty and missing are the same
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The manual has every key of both daemons, with the default that the code has.
func TestManualListsEveryKey(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	agents, schedulers, ok := strings.Cut(string(text), "\n## A cluster\n")
	if !ok {
		t.Fatal("docs/operations.md has no section A cluster")
	}
	for name, daemon := range map[string]struct {
		manual string
		config any
	}{"agent": {agents, agent.Default()}, "scheduler": {schedulers, scheduler.Default()}} {
		t.Run(name, func(t *testing.T) {
			for _, row := range configRows(t, daemon.config) {
				if !strings.Contains(daemon.manual, row) {
					t.Errorf("docs/operations.md has no row %q", row)
				}
			}
		})
	}
}

// configRows returns how the rows of a configuration's keys begin, with the defaults of those that have a single value.
func configRows(t *testing.T, config any) (rows []string) {
	t.Helper()
	text, err := toml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	var defaults map[string]any
	if err := toml.Unmarshal(text, &defaults); err != nil {
		t.Fatal(err)
	}
	return append(rows, rowsOf(t, "", reflect.TypeOf(config), defaults)...)
}

// rowsOf returns the rows of a struct's keys; those of a section begin with its name.
func rowsOf(t *testing.T, section string, config reflect.Type, defaults map[string]any) (rows []string) {
	t.Helper()
	for field := range config.Fields() {
		key := field.Tag.Get("toml")
		if key == "-" {
			continue
		}
		if inner, ok := defaults[key].(map[string]any); ok && field.Type.Kind() == reflect.Struct {
			rows = append(rows, rowsOf(t, section+key+".", field.Type, inner)...)
			continue
		}
		row := "| `" + section + key + "` | "
		if v, ok := defaults[key]; ok && reflect.TypeOf(v).Kind() != reflect.Slice && reflect.TypeOf(v).Kind() != reflect.Map {
			one, err := toml.Marshal(map[string]any{key: v})
			if err != nil {
				t.Fatal(err)
			}
			_, value, _ := strings.Cut(strings.TrimSpace(string(one)), " = ")
			row += "`" + strings.ReplaceAll(value, "'", `"`) + "` |"
		}
		rows = append(rows, row)
	}
	return rows
}
