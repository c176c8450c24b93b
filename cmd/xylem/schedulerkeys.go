package main

import (
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/scheduler/api"
)

func (s *schedulerAdmin) key() *cobra.Command {
	return group("key", "Make, list and revoke the keys with which users make and invoke functions", s.createKey(), s.listKeys(), s.revokeKey())
}

func (s *schedulerAdmin) ca() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ca", Short: "Print the certificate of the cluster's CA", Args: usage(cobra.NoArgs),
		Long: "Ca prints the certificate, PEM, with which users on other machines verify the scheduler: give it to 'xylem fn --ca-file'.",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		text, err := s.client().CA(cmd.Context())
		if err != nil {
			return adviseScheduler(err, "")
		}
		_, err = io.WriteString(s.out, text)
		return err
	}
	return cmd
}

func (s *schedulerAdmin) createKey() *cobra.Command {
	var request api.KeyRequest
	cmd := &cobra.Command{
		Use: "create", Short: "Print a new access key, as ID:SECRET", Args: usage(cobra.NoArgs),
		Long: "Create prints a key that is shown this once: it is a secret. Give it to 'xylem fn --key-file', send it as a bearer token, or use its\n" +
			"two halves as the access key ID and the secret access key of an AWS program.",
	}
	cmd.Flags().StringSliceVar(&request.Namespaces, "namespace", []string{api.DefaultNamespace}, "`namespace` that it is for; may be repeated; *: all")
	cmd.Flags().BoolVar(&request.InvokeOnly, "invoke-only", false, "not for making and changing functions")
	cmd.Flags().DurationVar(&request.TTL, "ttl", 0, "`time` for which it is valid, as 24h; 0: until it is revoked")
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if request.TTL < 0 {
			return usageError{errors.New("--ttl must not be negative")}
		}
		key, err := s.client().CreateKey(cmd.Context(), request)
		if err != nil {
			return adviseScheduler(err, "")
		}
		return output.print(s.out, key, func(w io.Writer) { row(w, key.ID+":"+key.Secret) })
	}
	return cmd
}

func (s *schedulerAdmin) listKeys() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the access keys, without their secrets", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		keys, err := s.client().Keys(cmd.Context())
		if err != nil {
			return adviseScheduler(err, "")
		}
		return output.print(s.out, keys, func(w io.Writer) {
			row(w, "ID", "NAMESPACES", "FOR", "CREATED", "EXPIRES")
			for _, k := range keys {
				use := "everything"
				if k.InvokeOnly {
					use = "invocations"
				}
				row(w, k.ID, strings.Join(k.Namespaces, ","), use, k.Created.Format(time.DateTime), expiryText(k.Expires))
			}
		})
	}
	return cmd
}

func (s *schedulerAdmin) revokeKey() *cobra.Command {
	cmd := &cobra.Command{Use: "revoke ID", Short: "End an access key at once", Args: usage(cobra.ExactArgs(1))}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return adviseScheduler(s.client().RevokeKey(cmd.Context(), args[0]), "'xylem scheduler key list' lists the keys there are")
	}
	return cmd
}
