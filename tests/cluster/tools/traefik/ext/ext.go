// Package ext is a place where Traefik's owners add fields to its configuration. The published module names it by a
// path inside its repository, which no other module can follow; in the open version it holds nothing.
package ext

// HTTP has no further fields.
type HTTP struct{}

// Router has no further fields.
type Router struct{}
