//go:build apis

// The API types of Flux, of which CustomResourceDefinitions are made; nothing of them is in the program.
package main

import (
	_ "github.com/fluxcd/helm-controller/api/v2"
	_ "github.com/fluxcd/kustomize-controller/api/v1"
	_ "github.com/fluxcd/source-controller/api/v1"
)
