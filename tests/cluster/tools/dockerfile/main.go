// Command dockerfile reads a Dockerfile as BuildKit does, without building it: it prints as JSON what BuildKit's linter says,
// the base images, the instructions of the last stage, the configuration of the image that would come out, and which files
// of the folder .dockerignore lets into the build.
//
//	dockerfile [--build-arg NAME=value …] folder
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"
)

// A Report is what can be known without a registry.
type Report struct {
	Warnings []string `json:"warnings"`
	Bases    []string `json:"bases"`
	Final    []string `json:"final"`
	Config   any      `json:"config"`
	Context  []string `json:"context"`
}

type arguments map[string]string

func (a arguments) String() string { return "" }

func (a arguments) Set(pair string) error {
	name, value, found := strings.Cut(pair, "=")
	if !found {
		return fmt.Errorf("%q is not NAME=value", pair)
	}
	a[name] = value
	return nil
}

func main() {
	build := arguments{}
	flag.Var(build, "build-arg", "value of an ARG, as NAME=value; may be repeated")
	flag.Parse()
	report, err := read(flag.Arg(0), build)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "dockerfile:", err)
		os.Exit(1)
	}
}

func read(folder string, build arguments) (*Report, error) {
	text, err := os.ReadFile(filepath.Join(folder, "Dockerfile"))
	if err != nil {
		return nil, err
	}
	report := &Report{Warnings: []string{}}
	stages, err := parse(text)
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, stage := range stages {
		if !named[stage.BaseName] {
			report.Bases = append(report.Bases, stage.BaseName)
		}
		named[stage.Name] = true
	}
	for _, command := range stages[len(stages)-1].Commands {
		report.Final = append(report.Final, fmt.Sprint(command))
	}
	options := dockerfile2llb.ConvertOpt{
		Config:       dockerui.Config{BuildArgs: build},
		SourceMap:    llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", text),
		MetaResolver: unknown{},
	}
	// The linter reads it and a build would fill it.
	options.SourceMap.Definition = &llb.Definition{}
	lint, err := dockerfile2llb.DockerfileLint(context.Background(), text, options)
	if err != nil {
		return nil, err
	}
	if lint.Error != nil {
		return nil, fmt.Errorf("Dockerfile: %s", lint.Error.Message)
	}
	for _, warning := range lint.Warnings {
		report.Warnings = append(report.Warnings, warning.RuleName+": "+warning.Detail)
	}
	options.Warn = func(string, string, string, string, []parser.Range) {}
	result, err := dockerfile2llb.Dockerfile2LLB(context.Background(), text, options)
	if err != nil {
		return nil, err
	}
	report.Config = result.Image.Config
	report.Context, err = contextOf(folder)
	return report, err
}

func parse(text []byte) ([]instructions.Stage, error) {
	file, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, _, err := instructions.Parse(file.AST, linter.New(&linter.Config{}))
	if err == nil && len(stages) == 0 {
		err = fmt.Errorf("Dockerfile has no stage")
	}
	return stages, err
}

// unknown stands for the registry: nothing is known of a base image, which only matters to the stage that starts with it.
type unknown struct{}

func (unknown) ResolveImageConfig(_ context.Context, name string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}`)
	return name, digest.FromBytes(config), config, nil
}

func contextOf(folder string) ([]string, error) {
	ignored, err := os.Open(filepath.Join(folder, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	defer ignored.Close()
	patterns, err := ignorefile.ReadAll(ignored)
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	var kept []string
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(folder, path)
		if err != nil || relative == "." {
			return err
		}
		matches, err := matcher.MatchesOrParentMatches(relative)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			// Something below may be let in again by an exclusion.
			if matches && !matcher.Exclusions() {
				return filepath.SkipDir
			}
			return nil
		}
		if !matches {
			kept = append(kept, relative)
		}
		return nil
	})
	return kept, err
}
