package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
)

func newKey(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "key", Short: "Print the public half of the converter's key, for trusted_keys of agents", Args: usage(cobra.NoArgs),
		Long: "Key prints the public half of the converter's key in PEM form. Put it into a file on every node and list that file in\n" +
			"trusted_keys of the agent's configuration. The key is made if there is none.",
	}
	cmd.Flags().StringVar(&file, "key", "", "`file` of the private key (default converter.key in --root)")
	cmd.RunE = func(*cobra.Command, []string) error {
		if file == "" {
			file = a.config.KeyFile()
		}
		key, err := convert.GenerateKey(file)
		if err != nil {
			return advise(err, "name another file with --key")
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return err
		}
		return pem.Encode(a.out, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
	}
	return cmd
}

// trusted returns the keys that an agent with this configuration trusts: those it lists, and the node's own.
func (a *app) trusted() ([]ed25519.PublicKey, error) {
	keys, err := agent.ReadPublicKeys(a.config.TrustedKeys)
	if err != nil {
		return nil, err
	}
	own, err := convert.LoadKey(a.config.KeyFile())
	switch {
	case err == nil:
		keys = append(keys, own.Public().(ed25519.PublicKey))
	case !errors.Is(err, blockfmt.ErrNotFound) && !errors.Is(err, fs.ErrPermission):
		return nil, err
	}
	return keys, nil
}
