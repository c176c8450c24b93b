package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/term"
)

// Configuration files of the daemons, which are read if they exist and no other is named.
const (
	agentConfigFile     = "/etc/xylem/agent.toml"
	schedulerConfigFile = "/etc/xylem/scheduler.toml"
)

// loadConfig reads a daemon's configuration file over its defaults, strictly: a key that does not exist is an error, because a
// misspelt one would silently mean its default. With an empty name, the file at otherwise is read if it exists.
func loadConfig[T any](name, otherwise string, config T) (T, error) {
	optional := name == ""
	if optional {
		name = otherwise
	}
	f, err := os.Open(name)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return config, nil
	}
	if err != nil {
		return config, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	if err := decodeConfig(f, &config); err != nil {
		return config, fmt.Errorf("configuration %s: %w", name, err)
	}
	return config, nil
}

func decodeConfig(r io.Reader, config any) error {
	err := toml.NewDecoder(r).DisallowUnknownFields().Decode(config)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		line, _ := unknown.Errors[0].Position()
		return fmt.Errorf("line %d: there is no key %q", line, strings.Join(unknown.Errors[0].Key(), "."))
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		return fmt.Errorf("line %d: %w", line, err)
	}
	return err
}

// newLogger logs for people on a terminal, JSON elsewhere.
func newLogger(w io.Writer, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
