package api

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Contract is how a function's program is told of invocations.
type Contract string

const (
	// ContractLambda is the AWS Lambda Runtime API, version 2018-06-01: the program asks for its next invocation.
	ContractLambda Contract = "lambda"
	// ContractHTTP is that of Knative and Cloud Run: the program serves HTTP on $PORT.
	ContractHTTP Contract = "http"
)

// Contracts are all of them.
var Contracts = []Contract{ContractLambda, ContractHTTP}

// DefaultNamespace is that of functions whose user names none.
const DefaultNamespace = "default"

// Latest is the qualifier of a function's newest version.
const Latest = "$LATEST"

// Limits of functions.
const (
	MinMemory        = 16 << 20 // bytes
	DefaultMemory    = 128 << 20
	DefaultCPU       = 1000 // thousandths of a core
	DefaultTimeout   = 30 * time.Second
	MaxTimeout       = 15 * time.Minute
	DefaultStart     = 30 * time.Second
	DefaultKeep      = 5 * time.Minute
	DefaultMax       = 1000
	maxConcurrency   = 1000
	maxInstances     = 10_000
	maxEnvironment   = 32 << 10 // bytes of all names and values together
	maxCommand       = 64 << 10
	defaultHTTPSlots = 80 // concurrent requests of an instance, as in Cloud Run
)

// FunctionSpec is what a user says of a function. What is zero gets its default by Complete.
type FunctionSpec struct {
	Namespace string   `json:"namespace,omitempty"` // tenant that it belongs to. Default "default"
	Name      string   `json:"name"`
	Image     string   `json:"image"`              // reference in a registry, by tag or digest
	Contract  Contract `json:"contract,omitempty"` // default "http"
	// Command replaces the image's entrypoint and command; Args its command only.
	Command []string          `json:"command,omitempty"`
	Args    []string          `json:"args,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	WorkDir string            `json:"workdir,omitempty"` // default: the image's
	Memory  int64             `json:"memory,omitempty"`  // bytes that an instance may use. Default 128 MiB
	CPU     int               `json:"cpu,omitempty"`     // thousandths of a core that an instance may use. Default 1000
	// Timeout bounds an invocation. Default 30s, at most 15m.
	Timeout Duration `json:"timeout,omitzero"`
	// StartTimeout bounds the start of an instance, from the request to its readiness. Default 30s.
	StartTimeout Duration `json:"startTimeout,omitzero"`
	// Concurrency is how many invocations an instance takes at the same time. Default 80 for the contract "http", 1 for "lambda",
	// which allows no more.
	Concurrency int `json:"concurrency,omitempty"`
	// Min instances are kept although nobody invokes them, at most Max run. Default 0 and 1000.
	Min int `json:"min,omitempty"`
	Max int `json:"max,omitempty"`
	// PerNode bounds the instances on one node. Default 0: by memory and CPU only.
	PerNode int `json:"perNode,omitempty"`
	// Keep is how long an instance without invocations is kept. Default 5m.
	Keep Duration `json:"keep,omitzero"`
	// Placement names the policy that sends invocations with a colour to instances. Default "adaptive".
	Placement string `json:"placement,omitempty"`
	// Warm is a path of the contract "http" that is told, by POST of a Warming, which colors are the instance's from now on, so that it
	// can fetch their data before somebody asks. Default: none.
	Warm string `json:"warm,omitempty"`
	// Idempotent allows an invocation whose instance died to be run again.
	Idempotent bool `json:"idempotent,omitempty"`
	// Retries is how often an asynchronous invocation that failed is run again. Default 2; -1: never.
	Retries int `json:"retries,omitempty"`
	// MaxAge is how long an asynchronous invocation may wait and be retried. Default 6h.
	MaxAge Duration `json:"maxAge,omitzero"`
	// DeadLetter names a function of the same namespace that gets asynchronous invocations that failed for good. Default: none, they
	// are logged.
	DeadLetter string `json:"deadLetter,omitempty"`
}

// Function is a version of a function that can run. It never changes.
type Function struct {
	FunctionSpec
	Version int `json:"version"` // from 1
	// Digest is that of the image's manifest for the platform of the nodes. What Image named when the version was made counts, whatever it
	// names now.
	Digest  digest.Digest `json:"digest"`
	Created time.Time     `json:"created"`
}

// Key names a function with all its versions, as "namespace/name".
func (s FunctionSpec) Key() string { return s.Namespace + "/" + s.Name }

// ID names a version, as "namespace/name:3".
func (f Function) ID() string { return fmt.Sprintf("%s:%d", f.Key(), f.Version) }

// ARN is the name that AWS's programs expect.
func (f Function) ARN() string {
	return fmt.Sprintf("arn:aws:lambda:xylem:000000000000:function:%s:%d", f.Name, f.Version)
}

// Ref names the image by its digest, in the repository that Image names.
func (f Function) Ref() string {
	repo, _, _ := strings.Cut(f.Image, "@")
	if slash, colon := strings.LastIndex(repo, "/"), strings.LastIndex(repo, ":"); colon > slash {
		repo = repo[:colon]
	}
	return repo + "@" + f.Digest.String()
}

var (
	functionName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_-]{0,62}[a-zA-Z0-9])?$`)
	variableName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	// reserved are set by the agent.
	reserved = []string{"AWS_LAMBDA_RUNTIME_API", "PORT", "_HANDLER", "_X_AMZN_TRACE_ID"}
)

// ValidName returns an error if a function, an alias or a namespace cannot have that name. what says which it is.
func ValidName(what, name string) error {
	if !functionName.MatchString(name) {
		return fmt.Errorf("%s %.80q: want 1 to 64 letters, digits, '-' and '_', with a letter or digit at both ends", what, name)
	}
	return nil
}

// Complete returns the spec with its defaults, or an error that says what cannot be.
func (s FunctionSpec) Complete() (FunctionSpec, error) {
	s = s.withDefaults()
	for _, check := range []func() error{s.checkNames, s.checkProgram, s.checkSize, s.checkTimes} {
		if err := check(); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s FunctionSpec) withDefaults() FunctionSpec {
	set(&s.Namespace, DefaultNamespace)
	set(&s.Contract, ContractHTTP)
	set(&s.Memory, DefaultMemory)
	set(&s.CPU, DefaultCPU)
	set(&s.Timeout.Duration, DefaultTimeout)
	set(&s.StartTimeout.Duration, DefaultStart)
	set(&s.Max, max(DefaultMax, s.Min))
	set(&s.Keep.Duration, DefaultKeep)
	set(&s.Placement, "adaptive")
	set(&s.Retries, 2)
	set(&s.MaxAge.Duration, 6*time.Hour)
	slots := defaultHTTPSlots
	if s.Contract == ContractLambda {
		slots = 1
	}
	set(&s.Concurrency, slots)
	return s
}

func set[T comparable](field *T, value T) {
	if *field == *new(T) {
		*field = value
	}
}

func (s FunctionSpec) checkNames() error {
	if err := ValidName("namespace", s.Namespace); err != nil {
		return err
	}
	if err := ValidName("function name", s.Name); err != nil {
		return err
	}
	if s.DeadLetter != "" {
		if err := ValidName("deadLetter", s.DeadLetter); err != nil {
			return err
		}
		if s.DeadLetter == s.Name {
			return fmt.Errorf("deadLetter %s is the function itself", s.Name)
		}
	}
	if s.Image == "" || len(s.Image) > 512 || strings.ContainsFunc(s.Image, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("image %.80q: want a reference as registry.example/repository:tag", s.Image)
	}
	if !slices.Contains(Contracts, s.Contract) {
		return fmt.Errorf("contract %.40q, want one of %q", s.Contract, Contracts)
	}
	return nil
}

func (s FunctionSpec) checkProgram() error {
	length := 0
	for name, value := range s.Env {
		length += len(name) + len(value)
		switch {
		case !variableName.MatchString(name):
			return fmt.Errorf("env: %.80q is no name of a variable", name)
		case slices.Contains(reserved, name):
			return fmt.Errorf("env: %s is set by the agent", name)
		case strings.ContainsRune(value, 0):
			return fmt.Errorf("env: the value of %s has a NUL byte", name)
		}
	}
	if length > maxEnvironment {
		return fmt.Errorf("env has %d bytes, at most %d", length, maxEnvironment)
	}
	length = 0
	for _, arg := range slices.Concat(s.Command, s.Args) {
		length += len(arg)
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("command: %.80q has a NUL byte", arg)
		}
	}
	if length > maxCommand {
		return fmt.Errorf("command has %d bytes, at most %d", length, maxCommand)
	}
	if s.WorkDir != "" && !strings.HasPrefix(s.WorkDir, "/") {
		return fmt.Errorf("workdir %.80q, want an absolute path", s.WorkDir)
	}
	if s.Warm != "" && (s.Contract != ContractHTTP || !strings.HasPrefix(s.Warm, "/")) {
		return fmt.Errorf("warm %.80q, want a path beginning with /, of a function with the contract http", s.Warm)
	}
	return nil
}

func (s FunctionSpec) checkSize() error {
	switch {
	case s.Memory < MinMemory:
		return fmt.Errorf("memory is %d bytes, want at least %d", s.Memory, MinMemory)
	case s.CPU < 10:
		return fmt.Errorf("cpu is %d thousandths of a core, want at least 10", s.CPU)
	case s.Contract == ContractLambda && s.Concurrency != 1:
		return fmt.Errorf("concurrency is %d, but the contract lambda takes one invocation at a time", s.Concurrency)
	case s.Concurrency < 1 || s.Concurrency > maxConcurrency:
		return fmt.Errorf("concurrency is %d, want 1 to %d", s.Concurrency, maxConcurrency)
	case s.Min < 0 || s.Max < 1 || s.Min > s.Max || s.Max > maxInstances:
		return fmt.Errorf("min is %d and max %d instances, want 0 <= min <= max <= %d, and max at least 1", s.Min, s.Max, maxInstances)
	case s.PerNode < 0:
		return fmt.Errorf("perNode is %d, want 0 (no bound) or more", s.PerNode)
	case s.Retries < -1 || s.Retries > 10:
		return fmt.Errorf("retries is %d, want -1 (never) to 10", s.Retries)
	}
	return nil
}

func (s FunctionSpec) checkTimes() error {
	for _, t := range []struct {
		name     string
		is       time.Duration
		min, max time.Duration
	}{
		{"timeout", s.Timeout.Duration, time.Millisecond, MaxTimeout},
		{"startTimeout", s.StartTimeout.Duration, 100 * time.Millisecond, MaxTimeout},
		{"keep", s.Keep.Duration, time.Second, 7 * 24 * time.Hour},
		{"maxAge", s.MaxAge.Duration, time.Second, 7 * 24 * time.Hour},
	} {
		if t.is < t.min || t.is > t.max {
			return fmt.Errorf("%s is %v, want %v to %v", t.name, t.is, t.min, t.max)
		}
	}
	return nil
}

// Duration is a time.Duration that is written as "1m30s".
type Duration struct{ time.Duration }

// UnmarshalText parses what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Warming says which colors are an instance's from now on.
type Warming struct {
	Colors []string `json:"colors"`
}

// AliasRequest makes an alias name a version.
type AliasRequest struct {
	Version int `json:"version"`
}

// FunctionInfo is a function with its versions.
type FunctionInfo struct {
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Latest    int            `json:"latest"`            // newest version
	Aliases   map[string]int `json:"aliases,omitempty"` // versions by alias
	Updated   time.Time      `json:"updated"`
	Versions  []Function     `json:"versions"` // newest first
}

// InstanceInfo is an instance as users see it.
type InstanceInfo struct {
	ID       string `json:"id"`
	Function string `json:"function"`
	Version  int    `json:"version"`
	Node     string `json:"node"` // peer ID
	InFlight int    `json:"inFlight"`
}

// NodeInfo is a node that takes work, as users see it.
type NodeInfo struct {
	Peer      string `json:"peer"`
	Zone      string `json:"zone,omitempty"`
	Memory    int64  `json:"memory"` // bytes for instances, all together
	CPU       int    `json:"cpu"`    // thousandths of a core for instances, all together
	Booked    int64  `json:"booked"` // of Memory
	BookedCPU int    `json:"bookedCPU"`
	Images    int    `json:"images"` // that it holds
}

// Where users' calls are.
const (
	PathFunctions         = "/v1/functions" // GET: list; POST FunctionSpec: create; below it, by name, everything about one
	PathFunctionInstances = "/v1/instances" // GET a list of InstanceInfo
	PathFunctionNodes     = "/v1/nodes"     // GET a list of NodeInfo
)

// Headers of users' requests and answers.
const (
	HeaderNamespace  = "X-Xylem-Namespace"      // which namespace the request is about. Default "default"
	HeaderUserColor  = "X-Xylem-Color"          // colour of an invocation
	HeaderQualifier  = "X-Xylem-Qualifier"      // version or alias
	HeaderUserError  = "X-Xylem-Function-Error" // in the answer: how the function failed
	HeaderVersion    = "X-Xylem-Version"        // in the answer: of the function
	HeaderRefused    = "X-Xylem-Error"          // in the answer: it is not the function's, but says why there is none
	HeaderUserInvoke = "X-Xylem-Invocation"     // in the answer: ID of the invocation
)

// KeyRequest asks for an access key (POST /v1/keys on the admin socket).
type KeyRequest struct {
	Namespaces []string      `json:"namespaces"` // that it is for; "*": all
	InvokeOnly bool          `json:"invokeOnly"` // not for making and changing functions
	TTL        time.Duration `json:"ttl"`        // 0: valid until it is revoked
}

// KeyInfo is an access key without its secret.
type KeyInfo struct {
	ID         string    `json:"id"`
	Namespaces []string  `json:"namespaces"`
	InvokeOnly bool      `json:"invokeOnly,omitempty"`
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires,omitzero"` // zero: never
}

// KeyResponse is a new access key.
type KeyResponse struct {
	KeyInfo
	Secret string `json:"secret"`
}

// CAResponse is the certificate of the cluster's CA (GET /v1/ca on the admin socket), which users of an https endpoint need.
type CAResponse struct {
	PEM string `json:"pem"`
}
