package main

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/xylem-project/xylem/agent/registry"
)

// checkPlugins looks at the credential provider plugins, if any are configured, and runs none of them.
func (d *doctor) checkPlugins(context.Context) []finding {
	const check, correct = "credential plugins", "correct credential_provider_config and credential_provider_bin_dir (" + agentConfigFile + ")"
	config, dir := d.config.CredentialProviderConfig, d.config.CredentialProviderBinDir
	switch {
	case config == "" && dir == "":
		return nil
	case config == "":
		return []finding{fail(check, "set credential_provider_config too, as the kubelet's --image-credential-provider-config", "credential_provider_bin_dir is set alone")}
	case dir == "":
		return []finding{fail(check, "set credential_provider_bin_dir too, as the kubelet's --image-credential-provider-bin-dir", "credential_provider_config is set alone")}
	case !filepath.IsAbs(config) || !filepath.IsAbs(dir):
		return []finding{fail(check, correct, "%s and %s must be absolute paths", config, dir)}
	}
	plugins, err := registry.CheckPlugins(config, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return []finding{fail(check, correct, "%v", err)}
	}
	if len(plugins) == 0 {
		return []finding{warn(check, "nothing is to be done if pods have service accounts for their registries", "%s has plugins for service accounts of pods only", config)}
	}
	var findings []finding
	for _, p := range plugins {
		if p.Err != nil {
			findings = append(findings, fail(check, "install it in "+dir+" as an executable file, or correct credential_provider_bin_dir", "%v", p.Err))
			continue
		}
		findings = append(findings, ok(check, "%s is asked for images of %s", p.Name, strings.Join(p.Images, " ")))
	}
	return findings
}
