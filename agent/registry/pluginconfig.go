package registry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

const (
	configGroup   = "kubelet.config.k8s.io"
	protocolGroup = "credentialprovider.kubelet.k8s.io"
	maxConfigSize = 1 << 20 // bytes of a CredentialProviderConfig
)

// isVersion says whether an apiVersion is one of a group. What is used here is the same in all of them.
func isVersion(apiVersion, group string) bool {
	version, ok := strings.CutPrefix(apiVersion, group+"/")
	return ok && slices.Contains([]string{"v1", "v1beta1", "v1alpha1"}, version)
}

// providerConfig is the CredentialProviderConfig of the kubelet.
type providerConfig struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Providers  []provider `json:"providers"`
}

// provider is one plugin of it.
type provider struct {
	Name                 string   `json:"name"`
	APIVersion           string   `json:"apiVersion"` // of the protocol
	MatchImages          []string `json:"matchImages"`
	DefaultCacheDuration *string  `json:"defaultCacheDuration"`
	Args                 []string `json:"args"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	TokenAttributes *struct {
		RequireServiceAccount bool `json:"requireServiceAccount"`
	} `json:"tokenAttributes"`

	defaultLife time.Duration
	images      []imagePattern
}

// readProviders returns the plugins of a file, or of a directory's *.json, *.yaml and *.yml files in the order of their names.
// Those that want the service account of a pod are left out: there is no pod here.
func readProviders(configPath string, log *slog.Logger) ([]provider, error) {
	files, err := configFiles(configPath)
	if err != nil {
		return nil, fmt.Errorf("credential provider configuration: %w", err)
	}
	seen := map[string]bool{}
	var all []provider
	for _, file := range files {
		providers, err := readProviderFile(file, log)
		if err != nil {
			return nil, fmt.Errorf("credential provider configuration %s: %w", file, err)
		}
		for _, p := range providers {
			switch err := p.validate(); {
			case err != nil:
				return nil, fmt.Errorf("credential provider configuration %s: provider %.80q: %w", file, p.Name, err)
			case seen[p.Name]:
				return nil, fmt.Errorf("credential provider configuration %s: provider %q is there twice", file, p.Name)
			}
			seen[p.Name] = true
			if p.TokenAttributes != nil && p.TokenAttributes.RequireServiceAccount {
				log.Warn("credential provider plugin is not used: it wants the service account of a pod", "plugin", p.Name)
				continue
			}
			all = append(all, p)
		}
	}
	return all, nil
}

func configFiles(configPath string) ([]string, error) {
	info, err := os.Stat(configPath)
	if err != nil || !info.IsDir() {
		return []string{configPath}, err
	}
	entries, err := os.ReadDir(configPath) // sorted
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(configPath, e.Name()))
		}
	}
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no *.json, *.yaml or *.yml in %s", configPath)
	}
	return files, err
}

func readProviderFile(path string, log *slog.Logger) ([]provider, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxConfigSize {
		return nil, fmt.Errorf("larger than %d bytes", maxConfigSize)
	}
	var config providerConfig
	if strict := yaml.UnmarshalStrict(text, &config); strict != nil {
		// The file is the kubelet's, and a later one may know more keys.
		config = providerConfig{}
		if err := yaml.Unmarshal(text, &config); err != nil {
			return nil, err
		}
		log.Warn("credential provider configuration has what is not known here", "file", path, "error", strict)
	}
	if !isVersion(config.APIVersion, configGroup) || config.Kind != "CredentialProviderConfig" {
		return nil, fmt.Errorf("is %.80q of %.80q, want CredentialProviderConfig of %s/v1", config.Kind, config.APIVersion, configGroup)
	}
	if len(config.Providers) == 0 {
		return nil, errors.New("has no providers")
	}
	return config.Providers, nil
}

// validate checks what the kubelet does, and fills in what is parsed.
func (p *provider) validate() error {
	switch {
	case p.Name == "" || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/ "):
		return errors.New("name must be that of a program")
	case !isVersion(p.APIVersion, protocolGroup):
		return fmt.Errorf("apiVersion %.80q, want %s/v1", p.APIVersion, protocolGroup)
	case len(p.MatchImages) == 0:
		return errors.New("matchImages is empty")
	case p.DefaultCacheDuration == nil:
		return errors.New("defaultCacheDuration is missing")
	}
	var err error
	if p.defaultLife, err = time.ParseDuration(*p.DefaultCacheDuration); err != nil || p.defaultLife < 0 {
		return fmt.Errorf("defaultCacheDuration %.40q is no duration such as 12h", *p.DefaultCacheDuration)
	}
	for _, text := range p.MatchImages {
		pattern, err := parseImagePattern(text)
		if err != nil {
			return fmt.Errorf("matchImages: %w", err)
		}
		p.images = append(p.images, pattern)
	}
	for _, e := range p.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.Contains(e.Value, "\x00") {
			return fmt.Errorf("env: %.80q is no variable", e.Name)
		}
	}
	return nil
}

// command returns the plugin's program, which must be in binDir.
func (p *provider) command(binDir string) (*pluginCommand, error) {
	path, err := exec.LookPath(filepath.Join(binDir, p.Name))
	if err != nil {
		return nil, fmt.Errorf("credential provider plugin: %w", err)
	}
	env := os.Environ()
	for _, e := range p.Env {
		env = append(env, e.Name+"="+e.Value) // the last one of a name counts
	}
	return &pluginCommand{name: p.Name, path: path, args: p.Args, env: env, apiVersion: p.APIVersion, timeout: pluginTimeout}, nil
}

// PluginCheck is what can be said of a plugin without running it.
type PluginCheck struct {
	Name   string
	Images []string // patterns
	Err    error    // why it cannot be run, or nil
}

// CheckPlugins looks at a configuration as OpenPlugins does, and at all of its plugins' programs. An error is one of the configuration or
// of binDir.
func CheckPlugins(configPath, binDir string, log *slog.Logger) ([]PluginCheck, error) {
	providers, err := readProviders(configPath, log)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(binDir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", binDir)
	}
	if err != nil {
		return nil, fmt.Errorf("directory of credential provider plugins: %w", err)
	}
	var all []PluginCheck
	for _, p := range providers {
		_, err := p.command(binDir)
		all = append(all, PluginCheck{p.Name, p.MatchImages, err})
	}
	return all, nil
}
