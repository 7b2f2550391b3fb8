# Development commands. `make` alone lists them; .ci/run runs everything.

GOLANGCI_VERSION := v2.15.0
FUZZTIME         ?= 10s
TOOLS            := $(CURDIR)/.tmp/bin
LINT             := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)

.DEFAULT_GOAL := help
.PHONY: help all deps test race fuzz bench compare lint fmt cover tidy-check cross ci

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

all: fmt lint test ## format, lint, test

deps: ## install the servers that the tests talk to (Debian, as root)
	.ci/deps

test: deps ## run the module's tests, on a fresh machine too
	PATH=$$PATH:/usr/sbin:/sbin KEEPALIVE_REAL_SERVERS=1 go test -race -timeout 900s ./...

race: ## run the tests without installing anything; what needs a server is skipped
	go test -race -timeout 900s ./...

fuzz: ## run each fuzz target for FUZZTIME (10s)
	.ci/fuzz $(FUZZTIME)

bench: ## run the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

compare: ## compare with other clients, a quarter of an hour (bench/README.md)
	go -C bench run .

lint: $(LINT) ## run golangci-lint
	$(LINT) run ./...

fmt: $(LINT) ## format with gofumpt and sort imports
	$(LINT) fmt ./...

cover: ## write coverage to .tmp/cover.html
	@mkdir -p .tmp
	go test -timeout 900s -coverpkg ./... -coverprofile .tmp/cover.out ./...
	go tool cover -html .tmp/cover.out -o .tmp/cover.html
	go tool cover -func .tmp/cover.out | tail -1

tidy-check: ## fail when go.mod or go.sum is not tidy
	go mod tidy -diff

cross: ## build and vet for the other platforms
	.ci/cross

ci: ## run what continuous integration runs
	.ci/run

$(LINT):
	.ci/lint-install $(GOLANGCI_VERSION) $(LINT)
