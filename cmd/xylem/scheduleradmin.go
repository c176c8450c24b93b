package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/scheduler"
	"github.com/xylem-project/xylem/scheduler/api"
)

// schedulerAdmin makes the commands that ask the scheduler on this machine.
type schedulerAdmin struct {
	*app
	config *scheduler.Config // filled before a command runs
}

func (s *schedulerAdmin) client() *api.Admin { return api.NewAdmin(s.config.Socket()) }

// adviseScheduler says what to do when a scheduler could not be asked, does not know what was named, or has a trouble of its own.
func adviseScheduler(err error, unknown string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return advise(err, "start 'xylem scheduler' on this machine, or name its directory with --state")
	case errors.Is(err, fs.ErrPermission):
		return advise(err, "run it as root")
	case errors.Is(err, api.ErrUnknown) && unknown != "":
		return advise(err, "%s", unknown)
	}
	return advise(err, "see the scheduler's log")
}

func (s *schedulerAdmin) token() *cobra.Command {
	return group("token", "Make, list and revoke the tokens with which agents join", s.createToken(), s.listTokens(), s.revokeToken())
}

func (s *schedulerAdmin) createToken() *cobra.Command {
	var ttl time.Duration
	var uses int
	cmd := &cobra.Command{
		Use: "create", Short: "Print a new join token", Args: usage(cobra.NoArgs),
		Long: "Create prints a token that is shown this once: it is a secret. Put it into the join_token_file of the agents.",
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "`time` for which it is valid, as 24h; 0: until it is revoked")
	cmd.Flags().IntVar(&uses, "uses", 0, "`number` of agents that can join with it; 0: any")
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if ttl < 0 || uses < 0 {
			return usageError{errors.New("--ttl and --uses must not be negative")}
		}
		token, err := s.client().CreateToken(cmd.Context(), ttl, uses)
		if err != nil {
			return adviseScheduler(err, "")
		}
		return output.print(s.out, token, func(w io.Writer) { row(w, token.Token) })
	}
	return cmd
}

func (s *schedulerAdmin) listTokens() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the join tokens, without their secrets", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		tokens, err := s.client().Tokens(cmd.Context())
		if err != nil {
			return adviseScheduler(err, "")
		}
		return output.print(s.out, tokens, func(w io.Writer) {
			row(w, "ID", "CREATED", "EXPIRES", "JOINS LEFT")
			for _, t := range tokens {
				row(w, t.ID, t.Created.Format(time.DateTime), expiryText(t.Expires), joinsLeft(t))
			}
		})
	}
	return cmd
}

func expiryText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.DateTime)
}

func joinsLeft(t api.TokenInfo) string {
	if t.Uses == 0 {
		return "any"
	}
	return fmt.Sprint(t.Uses)
}

func (s *schedulerAdmin) revokeToken() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "End a join token; agents that joined with it stay", Args: usage(cobra.ExactArgs(1)),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return adviseScheduler(s.client().RevokeToken(cmd.Context(), args[0]), "'xylem scheduler token list' lists the tokens there are")
	}
	return cmd
}

func (s *schedulerAdmin) agents() *cobra.Command {
	cmd := &cobra.Command{
		Use: "agents", Short: "List the agents that this scheduler knows", Args: usage(cobra.NoArgs),
		Long: "Agents lists the agents that have a session with this scheduler or are in a tree that it owns. An agent has a session with the\n" +
			"owners of its trees, or with any one scheduler: with several schedulers, ask all of them.",
	}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		agents, err := s.client().Agents(cmd.Context())
		if err != nil {
			return adviseScheduler(err, "")
		}
		return output.print(s.out, agents, func(w io.Writer) {
			row(w, "PEER", "ADDRESSES", "ZONE", "SEEN", "SESSION", "TREES", "CHILDREN")
			for _, a := range agents {
				ago := time.Since(a.Seen).Round(100 * time.Millisecond)
				row(w, a.Agent.ID, addresses(a.Agent.Addrs), a.Zone, ago.String()+" ago", a.Session, a.Trees, a.Children)
			}
		})
	}
	return cmd
}

func addresses(list []netip.AddrPort) string {
	var texts []string
	for _, a := range list {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ",")
}

func (s *schedulerAdmin) revoke() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke PEER", Short: "Take an agent out of the cluster", Args: usage(cobra.ExactArgs(1)),
		Long: "Revoke takes an agent out of its trees, and all schedulers and agents refuse it from now on. PEER is its peer ID.",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := api.ValidPeerID(args[0]); err != nil {
			return advise(usageError{err}, "'xylem scheduler agents' lists the peer IDs")
		}
		return adviseScheduler(s.client().Revoke(cmd.Context(), args[0]), "")
	}
	return cmd
}

func (s *schedulerAdmin) pardon() *cobra.Command {
	cmd := &cobra.Command{Use: "pardon PEER", Short: "Undo revoke: the agent belongs to the cluster again", Args: usage(cobra.ExactArgs(1))}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return adviseScheduler(s.client().Pardon(cmd.Context(), args[0]), "'xylem scheduler revoked' lists the agents that are revoked")
	}
	return cmd
}

func (s *schedulerAdmin) revoked() *cobra.Command {
	cmd := &cobra.Command{Use: "revoked", Short: "List the peer IDs of the agents that are revoked", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		peers, err := s.client().Revoked(cmd.Context())
		if err != nil {
			return adviseScheduler(err, "")
		}
		return output.print(s.out, peers, func(w io.Writer) {
			for _, p := range peers {
				row(w, p)
			}
		})
	}
	return cmd
}
