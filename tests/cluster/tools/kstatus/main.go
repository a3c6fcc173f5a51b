// Judges objects as GitOps tools do: by kstatus, by Argo CD's health scripts in the interpreter that Argo CD embeds, and
// by Flux, which asks its own kstatus or the CEL expressions of a Kustomization.
//
// Standard input is a stream of JSON: first the rules {"argocd": {data of argocd-cm}, "flux": [spec.healthCheckExprs]}, then objects. Each
// object is answered by one line.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	fluxstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// Argo CD stops a script after this time.
const scriptLimit = time.Second

type rules struct {
	ArgoCD map[string]string             `json:"argocd"`
	Flux   []kustomize.CustomHealthCheck `json:"flux"`
}

type told struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type verdict struct {
	Kstatus told `json:"kstatus"`
	ArgoCD  told `json:"argocd"`
	Flux    told `json:"flux"`
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	documents := json.NewDecoder(bufio.NewReader(in))
	answers := json.NewEncoder(out)
	var wanted rules
	if err := documents.Decode(&wanted); err != nil {
		return fmt.Errorf("the rules cannot be read: %w", err)
	}
	expressions := map[schema.GroupKind]*cel.StatusEvaluator{}
	for _, check := range wanted.Flux {
		kind := schema.FromAPIVersionAndKind(check.APIVersion, check.Kind).GroupKind()
		evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
		if err != nil {
			return fmt.Errorf("healthCheckExprs of %s: %w", kind, err)
		}
		expressions[kind] = evaluator
	}
	for {
		var raw json.RawMessage
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("an object cannot be read: %w", err)
		}
		// Keeps whole numbers whole; kstatus refuses generations that are floats.
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(raw); err != nil {
			return fmt.Errorf("an object cannot be read: %w", err)
		}
		judged, err := judge(object, wanted.ArgoCD, expressions)
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		if err := answers.Encode(judged); err != nil {
			return err
		}
	}
}

func judge(object *unstructured.Unstructured, scripts map[string]string, expressions map[schema.GroupKind]*cel.StatusEvaluator) (*verdict, error) {
	plain, err := status.Compute(object)
	if err != nil {
		return nil, err
	}
	kind := object.GroupVersionKind().GroupKind()
	var flux told
	if evaluator := expressions[kind]; evaluator != nil {
		result, err := evaluator.Evaluate(context.Background(), object)
		if err != nil {
			return nil, fmt.Errorf("healthCheckExprs of %s: %w", kind, err)
		}
		flux = told{result.Status.String(), result.Message}
	} else {
		result, err := fluxstatus.Compute(object)
		if err != nil {
			return nil, err
		}
		flux = told{result.Status.String(), result.Message}
	}
	argo, err := argocd(object, kind, scripts)
	if err != nil {
		return nil, err
	}
	return &verdict{told{plain.Status.String(), plain.Message}, argo, flux}, nil
}

// argocd gives the health that Argo CD shows. It asks no script about an object that is being deleted.
func argocd(object *unstructured.Unstructured, kind schema.GroupKind, scripts map[string]string) (told, error) {
	if object.GetDeletionTimestamp() != nil {
		return told{"Progressing", "Pending deletion"}, nil
	}
	key := "resource.customizations.health." + kind.Group + "_" + kind.Kind
	script, ok := scripts[key]
	if !ok {
		return told{}, fmt.Errorf("argocd-cm has no %s", key)
	}
	// What Argo CD gives to scripts of a ConfigMap: no string, math or io library. Of its os library, which has date and
	// time only, nothing is here.
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}} {
		call := lua.P{Fn: state.NewFunction(library.open), Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return told{}, err
		}
	}
	limit, cancel := context.WithTimeout(context.Background(), scriptLimit)
	defer cancel()
	state.SetContext(limit)
	state.SetGlobal("obj", toLua(state, object.Object))
	if err := state.DoString(script); err != nil {
		return told{}, fmt.Errorf("%s: %w", key, err)
	}
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return told{}, fmt.Errorf("%s returns no table", key)
	}
	health := told{lua.LVAsString(answer.RawGetString("status")), lua.LVAsString(answer.RawGetString("message"))}
	switch health.Status {
	case "Healthy", "Progressing", "Degraded", "Suspended":
		return health, nil
	default:
		return told{}, fmt.Errorf("%s returns the health %q", key, health.Status)
	}
}

func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case string:
		return lua.LString(value)
	case []any:
		list := state.CreateTable(len(value), 0)
		for _, item := range value {
			list.Append(toLua(state, item))
		}
		return list
	case map[string]any:
		table := state.CreateTable(0, len(value))
		for key, item := range value {
			table.RawSetString(key, toLua(state, item))
		}
		return table
	default:
		return lua.LNil
	}
}
