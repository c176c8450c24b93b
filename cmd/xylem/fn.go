package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
	"github.com/xylem-project/xylem/scheduler"
	"github.com/xylem-project/xylem/scheduler/api"
)

// fn makes the commands about functions.
type fn struct {
	*app
	endpoint, namespace, key, ca string
}

func newFn(a *app) *cobra.Command {
	f := &fn{app: a}
	cmd := group("fn", "Make functions of images, and invoke them",
		f.create(), f.update(), f.scale(), f.list(), f.describe(), f.delete(), f.alias(), f.invoke(), f.logs(), f.instances())
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.endpoint, "endpoint", cmp.Or(os.Getenv("XYLEM_ENDPOINT"), "http://"+scheduler.Default().Listen), "`URL` of a scheduler (or XYLEM_ENDPOINT)")
	flags.StringVarP(&f.namespace, "namespace", "n", api.DefaultNamespace, "`namespace` of the functions")
	flags.StringVar(&f.key, "key-file", os.Getenv("XYLEM_KEY_FILE"), "`file` with an access key, ID:SECRET; not needed on the scheduler's machine (or XYLEM_KEY_FILE)")
	flags.StringVar(&f.ca, "ca-file", os.Getenv("XYLEM_CA_FILE"), "PEM `file` of the CA of an https endpoint (or XYLEM_CA_FILE; default the system's)")
	return cmd
}

func (f *fn) user() (*api.User, error) {
	cfg := api.UserConfig{URL: f.endpoint, Namespace: f.namespace}
	if f.key != "" {
		text, err := os.ReadFile(f.key)
		if err != nil {
			return nil, fmt.Errorf("access key: %w", err)
		}
		cfg.Key = strings.TrimSpace(string(text))
	}
	if f.ca != "" {
		var err error
		if cfg.CA, err = os.ReadFile(f.ca); err != nil {
			return nil, fmt.Errorf("CA: %w", err)
		}
	}
	u, err := api.NewUser(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return u, nil
}

// adviseFunction says what to do when a call failed.
func (f *fn) adviseFunction(err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return advise(err, "start 'xylem up' or 'xylem scheduler' on this machine, or name another with --endpoint")
	case errors.Is(err, api.ErrUnknown):
		return advise(err, "'xylem fn list' lists the functions of namespace %s", f.namespace)
	}
	return err
}

// specFlags are the flags that say what a function is.
type specFlags struct {
	spec    api.FunctionSpec
	memory  agent.Size
	cpu     float64
	env     []string
	command []string
}

func (s *specFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&s.spec.Image, "image", "", "`reference` of the image in a registry")
	flags.StringVar((*string)(&s.spec.Contract), "contract", "", "how the program is told of invocations: lambda or http (default http)")
	flags.StringSliceVar(&s.command, "entrypoint", nil, "`program` with leading arguments in place of the image's entrypoint and command")
	flags.StringArrayVarP(&s.env, "env", "e", nil, "environment, `KEY=VALUE`; repeatable")
	flags.StringVar(&s.spec.WorkDir, "workdir", "", "`directory` to start in (default the image's)")
	flags.TextVar(&s.memory, "memory", agent.Size(0), "`size` that an instance may use (default 128MiB)")
	flags.Float64Var(&s.cpu, "cpu", 0, "`cores` that an instance may use, as 0.5 (default 1)")
	flags.DurationVar(&s.spec.Timeout.Duration, "timeout", 0, "`time` for an invocation (default 30s)")
	flags.DurationVar(&s.spec.StartTimeout.Duration, "start-timeout", 0, "`time` for the start of an instance (default 30s)")
	flags.DurationVar(&s.spec.Keep.Duration, "keep", 0, "`time` that an instance is kept without invocations (default 5m)")
	flags.IntVar(&s.spec.Concurrency, "concurrency", 0, "`invocations` at once in an instance (default 80; lambda: 1)")
	flags.IntVar(&s.spec.PerNode, "per-node", 0, "`instances` on one node at most (default as many as fit)")
	flags.StringVar(&s.spec.Placement, "placement", "", "`policy` for invocations with a colour (default adaptive)")
	flags.StringVar(&s.spec.Warm, "warm", "", "`path` that is told which colors are an instance's from now on (http only)")
	flags.BoolVar(&s.spec.Idempotent, "idempotent", false, "invocations may run twice: those whose instance died run again")
	flags.IntVar(&s.spec.Retries, "retries", 0, "how often asynchronous invocations that failed run again (default 2; -1: never)")
	flags.DurationVar(&s.spec.MaxAge.Duration, "max-age", 0, "`time` that asynchronous invocations may wait (default 6h)")
	flags.StringVar(&s.spec.DeadLetter, "dead-letter", "", "`function` that gets asynchronous invocations that failed for good")
	s.addScale(cmd)
}

func (s *specFlags) addScale(cmd *cobra.Command) {
	cmd.Flags().IntVar(&s.spec.Min, "min", 0, "`instances` that are always kept")
	cmd.Flags().IntVar(&s.spec.Max, "max", 0, "`instances` at most (default 1000)")
}

// onto returns the spec with what the command line says.
func (s *specFlags) onto(spec api.FunctionSpec, cmd *cobra.Command, args []string) (api.FunctionSpec, error) {
	given := s.spec
	for name, set := range map[string]func(){
		"image": func() { spec.Image = given.Image }, "contract": func() { spec.Contract, spec.Concurrency = given.Contract, 0 },
		"entrypoint": func() { spec.Command = s.command }, "workdir": func() { spec.WorkDir = given.WorkDir },
		"memory": func() { spec.Memory = int64(s.memory) }, "cpu": func() { spec.CPU = int(s.cpu * 1000) },
		"timeout": func() { spec.Timeout = given.Timeout }, "start-timeout": func() { spec.StartTimeout = given.StartTimeout },
		"keep": func() { spec.Keep = given.Keep }, "per-node": func() { spec.PerNode = given.PerNode },
		"placement": func() { spec.Placement = given.Placement }, "warm": func() { spec.Warm = given.Warm }, "idempotent": func() { spec.Idempotent = given.Idempotent },
		"retries": func() { spec.Retries = given.Retries }, "max-age": func() { spec.MaxAge = given.MaxAge }, "dead-letter": func() { spec.DeadLetter = given.DeadLetter },
		"min": func() { spec.Min = given.Min }, "max": func() { spec.Max = given.Max },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	if cmd.Flags().Changed("concurrency") { // after the contract, which has its own
		spec.Concurrency = given.Concurrency
	}
	if len(args) > 0 {
		spec.Args = args
	}
	if cmd.Flags().Changed("env") {
		spec.Env = map[string]string{}
		for _, e := range s.env {
			name, value, ok := strings.Cut(e, "=")
			if !ok {
				return spec, usageError{fmt.Errorf("--env %q, want KEY=VALUE", e)}
			}
			spec.Env[name] = value
		}
	}
	if _, err := spec.Complete(); err != nil {
		return spec, usageError{err}
	}
	return spec, nil
}

func (f *fn) create() *cobra.Command {
	var s specFlags
	cmd := &cobra.Command{
		Use: "create NAME --image REF [ARGS...]", Short: "Make a function of an image",
		Long: "Create resolves the image's tag, has the cluster convert the image, and makes the function's first version. ARGS replace the\n" +
			"image's command. Flags come before NAME's ARGS.",
		Args: usage(cobra.MinimumNArgs(1)),
	}
	s.add(cmd)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := s.onto(api.FunctionSpec{Namespace: f.namespace, Name: args[0]}, cmd, args[1:])
		if err != nil {
			return err
		}
		u, err := f.user()
		if err != nil {
			return err
		}
		made, err := u.Create(cmd.Context(), spec)
		return f.printVersion(output, made, err)
	}
	return cmd
}

func (f *fn) printVersion(output *format, made api.Function, err error) error {
	if err != nil {
		return f.adviseFunction(err)
	}
	return output.print(f.out, made, func(w io.Writer) {
		row(w, fmt.Sprintf("%s version %d of %s", made.Name, made.Version, made.Ref()))
	})
}

func (f *fn) update() *cobra.Command {
	var s specFlags
	cmd := &cobra.Command{
		Use: "update NAME [ARGS...]", Short: "Make a new version of a function, changed as the flags say",
		Long: "Update takes the newest version, changes what flags and ARGS say, resolves the image's tag anew and makes a version of it, which\n" +
			"new invocations run at once. Versions that have an alias, and the newest 50, are kept.",
		Args: usage(cobra.MinimumNArgs(1)),
	}
	s.add(cmd)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.change(cmd, &s, output, args) }
	return cmd
}

// change makes a new version of a function.
func (f *fn) change(cmd *cobra.Command, s *specFlags, output *format, args []string) error {
	u, err := f.user()
	if err != nil {
		return err
	}
	info, err := u.Describe(cmd.Context(), args[0])
	if err != nil {
		return f.adviseFunction(err)
	}
	at := slices.IndexFunc(info.Versions, func(v api.Function) bool { return v.Version == info.Latest })
	if at < 0 {
		return fmt.Errorf("function %s has no version %d", args[0], info.Latest)
	}
	spec, err := s.onto(info.Versions[at].FunctionSpec, cmd, args[1:])
	if err != nil {
		return err
	}
	made, err := u.Update(cmd.Context(), spec)
	return f.printVersion(output, made, err)
}

func (f *fn) scale() *cobra.Command {
	var s specFlags
	cmd := &cobra.Command{
		Use: "scale NAME --min N --max N", Short: "Say how many instances a function has", Args: usage(cobra.ExactArgs(1)),
		Long: "Scale makes a new version that differs in nothing else.",
	}
	s.addScale(cmd)
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("min") && !cmd.Flags().Changed("max") {
			return usageError{errors.New("say --min, --max or both")}
		}
		return f.change(cmd, &s, output, args)
	}
	return cmd
}

func (f *fn) list() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the functions of the namespace", Args: usage(cobra.NoArgs)}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		u, err := f.user()
		if err != nil {
			return err
		}
		list, err := u.List(cmd.Context())
		if err != nil {
			return f.adviseFunction(err)
		}
		return output.print(f.out, list, func(w io.Writer) {
			row(w, "NAME", "VERSION", "CONTRACT", "MEMORY", "CPU", "MIN", "MAX", "CREATED", "IMAGE")
			for _, v := range list {
				row(w, v.Name, v.Version, v.Contract, bytesText(v.Memory), cores(v.CPU), v.Min, v.Max, v.Created.Format(time.DateTime), v.Image)
			}
		})
	}
	return cmd
}

func cores(thousandths int) string {
	return strconv.FormatFloat(float64(thousandths)/1000, 'g', -1, 64)
}

func (f *fn) describe() *cobra.Command {
	cmd := &cobra.Command{Use: "describe NAME", Short: "Show a function with its versions and aliases", Args: usage(cobra.ExactArgs(1))}
	output := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u, err := f.user()
		if err != nil {
			return err
		}
		info, err := u.Describe(cmd.Context(), args[0])
		if err != nil {
			return f.adviseFunction(err)
		}
		return output.print(f.out, info, func(w io.Writer) {
			row(w, "VERSION", "ALIASES", "CREATED", "DIGEST", "IMAGE")
			for _, v := range info.Versions {
				row(w, v.Version, strings.Join(aliasesOf(info, v.Version), ","), v.Created.Format(time.DateTime), shortDigest(digest.Digest(v.Digest)), v.Image)
			}
		})
	}
	return cmd
}

// aliasesOf returns the names of a version.
func aliasesOf(info api.FunctionInfo, version int) (names []string) {
	if version == info.Latest {
		names = append(names, api.Latest)
	}
	for alias, v := range info.Aliases {
		if v == version {
			names = append(names, alias)
		}
	}
	slices.Sort(names)
	return names
}

func (f *fn) delete() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Remove a function with all its versions", Args: usage(cobra.ExactArgs(1)),
		Long: "Delete removes the function; its instances are stopped when the invocations that run have ended.",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u, err := f.user()
		if err != nil {
			return err
		}
		return f.adviseFunction(u.Delete(cmd.Context(), args[0]))
	}
	return cmd
}

func (f *fn) alias() *cobra.Command {
	set := &cobra.Command{Use: "set NAME ALIAS VERSION", Short: "Make an alias name a version", Args: usage(cobra.ExactArgs(3))}
	set.RunE = func(cmd *cobra.Command, args []string) error {
		version, err := strconv.Atoi(args[2])
		if err != nil {
			return usageError{fmt.Errorf("version %q, want a number", args[2])}
		}
		u, err := f.user()
		if err != nil {
			return err
		}
		return f.adviseFunction(u.SetAlias(cmd.Context(), args[0], args[1], version))
	}
	remove := &cobra.Command{Use: "delete NAME ALIAS", Short: "Remove an alias", Args: usage(cobra.ExactArgs(2))}
	remove.RunE = func(cmd *cobra.Command, args []string) error {
		u, err := f.user()
		if err != nil {
			return err
		}
		return f.adviseFunction(u.DeleteAlias(cmd.Context(), args[0], args[1]))
	}
	return group("alias", "Name versions of a function", set, remove)
}
