# Needs Go and make; everything else is a Debian/Ubuntu package that `make deps` installs when it is missing (as root).

SHELL    := /bin/bash
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT   ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
GO       ?= go
# How long `make fuzz`, and how often `make test`, runs each fuzz target: by count, because a run that ends by the clock can fail with
# "context deadline exceeded" without a finding.
FUZZTIME     ?= 60s
TESTFUZZTIME ?= 2000x

.PHONY: all build test lint demo demo-image bench bench-node bench-tree bench-proxy bench-fn bench-tree-sim deps nightly fuzz clean

all: build

# The binary of a release: static, so that one build runs on every node.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/xylem ./cmd/xylem

# Everything that must hold before a commit is merged: real mounts, real containerd, race detector, fuzz targets for a few
# seconds each. A skipped test fails the run. Needs root.
test: deps lint build demo-image
	$(GO) run ./hack/testreport -fuzztime $(TESTFUZZTIME) -- -race -timeout 20m ./...

# The image of the demo, the benchmarks and the end-to-end tests, kept in hack/cache. Made here and not by the tests, because the
# race detector would slow it down tenfold.
demo-image: deps
	$(GO) run ./hack/demoimage/build

lint:
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	 if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=hack/lint/go.mod staticcheck ./...

# The main job: eight hosts start the same container at once, with overlayfs and with xylem. Writes hack/out/demo.json.
demo: deps build
	$(GO) run ./hack/demo

bench: bench-node bench-tree bench-proxy bench-fn

# The figures of docs/benchmarks.md. Writes hack/out/bench-node.json.
bench-node: deps build
	$(GO) run ./hack/bench-node

# Its figures of function trees. Writes hack/out/bench-tree.json.
bench-tree: deps build
	$(GO) run ./hack/bench-tree

# Its figures of the registry proxy. Writes hack/out/bench-proxy.json.
bench-proxy: deps build
	$(GO) run ./hack/bench-proxy

# Its figures of calls of functions, on the graph in the file GRAPH, if there is one. Writes hack/out/bench-fn.json.
bench-fn:
	$(GO) run ./hack/bench-fn $(if $(GRAPH),-graph $(GRAPH))

# The figures of simulated trees alone. Writes hack/out/bench-tree-sim.json.
bench-tree-sim:
	@mkdir -p hack/out
	$(GO) test ./tree/treesim -count=1 -timeout=60m -v -run=TestFigures -figures=$(CURDIR)/hack/out/bench-tree-sim.json

# What takes too long for every commit: a thousand simulated worlds in which much goes wrong, from SEED on. It says which ones failed.
SEED  ?= 1
SEEDS ?= 1000
nightly:
	$(GO) test ./tree/treesim -count=1 -timeout=120m -run=TestSeeds -seed=$(SEED) -seeds=$(SEEDS)

fuzz:
	$(GO) run ./hack/testreport -fuzztime $(FUZZTIME)

deps:
	@hack/deps.sh

clean:
	rm -rf bin hack/out hack/cache
