package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/xylem-project/xylem/agent"
)

const (
	defaultContainerd = "/run/containerd/containerd.sock"
	defaultHostsDir   = "/etc/containerd/certs.d"
)

// containerdFlags say which containerd a command talks to, and how.
type containerdFlags struct {
	address, namespace, snapshotter, platform, hostsDir string
}

func (f *containerdFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.address, "address", defaultContainerd, "`socket` of containerd")
	flags.StringVarP(&f.namespace, "namespace", "n", namespaces.Default, "containerd's `namespace`; pods live in k8s.io")
	flags.StringVar(&f.snapshotter, "snapshotter", "xylem", "containerd's `snapshotter`")
	flags.StringVar(&f.platform, "platform", "", "`os/arch` of a multi-platform image (default this machine's)")
	flags.StringVar(&f.hostsDir, "hosts-dir", defaultHostsDir, "`directory` with a hosts.toml per registry")
}

// connect returns a client, after checking that somebody answers, and a context with the namespace and the log for
// containerd's client library. The caller closes the client.
func (f *containerdFlags) connect(ctx context.Context, to *slog.Logger) (*containerd.Client, context.Context, error) {
	if _, err := os.Stat(f.address); err != nil {
		return nil, nil, advise(fmt.Errorf("containerd: %w", err), "start containerd or name its socket with --address")
	}
	client, err := containerd.New(f.address)
	if err != nil {
		return nil, nil, advise(err, "start containerd or name its socket with --address")
	}
	ctx = withLog(namespaces.WithNamespace(ctx, f.namespace), to)
	if _, err := client.Version(ctx); err != nil {
		client.Close()
		return nil, nil, advise(fmt.Errorf("containerd at %s: %w", f.address, err), "start containerd or name its socket with --address")
	}
	return client, ctx, nil
}

// checkSnapshotter says early, and in our words, that containerd does not know the snapshotter.
func (f *containerdFlags) checkSnapshotter(ctx context.Context, client *containerd.Client) error {
	if _, err := client.GetSnapshotterCapabilities(ctx, f.snapshotter); err != nil {
		return advise(fmt.Errorf("snapshotter %q of containerd at %s: %w", f.snapshotter, f.address, err),
			"configure it in containerd's proxy_plugins ('xylem doctor' says how)")
	}
	return nil
}

// withLog turns what containerd's client library logs into debug lines of ours: it warns about what is no concern of
// the user's, and its errors are returned as well.
func withLog(ctx context.Context, to *slog.Logger) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.AddHook(logHook{to})
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

type logHook struct{ to *slog.Logger }

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logHook) Fire(e *logrus.Entry) error {
	h.to.Debug(e.Message, "from", "containerd client", "level", e.Level.String(), "fields", fmt.Sprint(e.Data))
	return nil
}

// canonical returns the full name of an image, as containerd's other clients store it.
func canonical(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", usageError{fmt.Errorf("image name %q: %w", ref, err)}
	}
	return named.String(), nil
}

// resolver finds images as containerd's own configuration says, with the credentials of docker's.
func resolver(ctx context.Context, hostsDir string, registries map[string]agent.RegistryConfig) remotes.Resolver {
	hosts := func(host string) ([]docker.RegistryHost, error) {
		options := dockerconfig.HostOptions{HostDir: dockerconfig.HostDirFromRoot(hostsDir), Credentials: credentials}
		settings := registries[host]
		loopback, err := docker.MatchLocalhost(host)
		if err != nil {
			return nil, err
		}
		if settings.PlainHTTP || loopback && settings.CA == "" {
			options.DefaultScheme = "http"
		}
		if settings.CA != "" {
			pool, err := certPool(settings.CA)
			if err != nil {
				return nil, err
			}
			options.DefaultTLS = &tls.Config{RootCAs: pool}
		}
		return dockerconfig.ConfigureHosts(ctx, options)(host)
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: http.Header{"User-Agent": {"xylem/" + version}}})
}

// credentials looks a registry up in docker's configuration and its credential helpers. No user with a secret means a token.
func credentials(host string) (user, secret string, err error) {
	if host == "registry-1.docker.io" {
		host = name.DefaultRegistry
	}
	registry, err := name.NewRegistry(host)
	if err != nil {
		return "", "", err
	}
	authenticator, err := authn.DefaultKeychain.Resolve(registry)
	if err != nil {
		return "", "", err
	}
	auth, err := authenticator.Authorization()
	if err != nil {
		return "", "", err
	}
	if auth.IdentityToken != "" {
		return "", auth.IdentityToken, nil
	}
	return auth.Username, auth.Password, nil
}

// certPool returns the system's certificates and those in a PEM file.
func certPool(file string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", file)
	}
	return pool, nil
}

// containerdError adds advice to what containerd says.
func containerdError(err error, f *containerdFlags) error {
	switch {
	case err == nil:
		return nil
	case errdefs.IsUnavailable(err):
		return advise(err, "check that containerd and 'xylem agent' are running ('xylem doctor')")
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return advise(err, "log in to the registry (docker login or skopeo login)")
	case errdefs.IsNotFound(err):
		return advise(err, "check the image's name, and that containerd knows the snapshotter %q ('xylem doctor')", f.snapshotter)
	}
	return advise(err, "see the logs of containerd and of 'xylem agent'")
}
