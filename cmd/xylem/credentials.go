package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent/registry"
)

// addCredentialFlags adds flags that override the configuration's credential provider plugins.
func addCredentialFlags(cmd *cobra.Command, a *app) {
	const configFlag, dirFlag = "credential-provider-config", "credential-provider-bin-dir"
	flags := cmd.Flags()
	config := flags.String(configFlag, "", "`file` with the kubelet's credential provider plugins (default credential_provider_config of the configuration)")
	dir := flags.String(dirFlag, "", "`directory` of their programs (default credential_provider_bin_dir of the configuration)")
	cmd.PreRun = func(*cobra.Command, []string) {
		if flags.Changed(configFlag) {
			a.config.CredentialProviderConfig = *config
		}
		if flags.Changed(dirFlag) {
			a.config.CredentialProviderBinDir = *dir
		}
	}
}

// plugins opens the credential provider plugins, if any are configured. The caller closes them.
func (a *app) plugins() (*registry.Plugins, error) {
	config, dir := a.config.CredentialProviderConfig, a.config.CredentialProviderBinDir
	switch {
	case config == "" && dir == "":
		return &registry.Plugins{}, nil
	case config == "" || dir == "":
		return nil, usageError{errors.New("the file with credential provider plugins and the directory of their programs must be set together")}
	}
	plugins, err := registry.OpenPlugins(config, dir, a.log)
	return plugins, advise(err, "'xylem doctor' looks at all of them")
}
