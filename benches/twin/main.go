// The least that an operator for the same tenants costs when it is written with controller-runtime: a manager that keeps the
// kinds that Torpor's operator watches in its cache, and passes over each Tenant in which it finds every object as it
// should be. It plans nothing, writes nothing and tells nothing, so a whole operator costs more.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

const (
	managed     = "app.kubernetes.io/managed-by"
	appliedHash = "torpor.dev/applied-hash"
	prefix      = "tenant-"
	// Passes at a time, as many as Torpor's operator runs over Tenants.
	workers = 16
	// After this time without news everything that only the start needed is given back.
	settles = 5 * time.Second
)

// What Torpor's operator makes for a tenant and watches. Each of the first group bears the hash by which a pass sees that
// nothing is to be done.
var (
	hashed = []client.Object{
		&corev1.ServiceAccount{}, &networkingv1.NetworkPolicy{}, &corev1.ResourceQuota{}, &corev1.LimitRange{},
		&corev1.ConfigMap{}, &corev1.Service{}, &networkingv1.Ingress{}, &policyv1.PodDisruptionBudget{},
		&appsv1.StatefulSet{}, &appsv1.Deployment{},
	}
	seen = []client.Object{&corev1.Pod{}, &corev1.PersistentVolumeClaim{}}
)

func main() {
	mode := flag.String("mode", "whole", "what is kept of an object: whole, stripped (of managed fields), metadata")
	tenants := flag.Int("tenants", 1, "how many Tenants there are")
	flag.Parse()
	if err := run(*mode, *tenants); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(mode string, tenants int) error {
	ctrl.SetLogger(klog.Background())
	// By the flag --kubeconfig, which the library brings along.
	config, err := ctrl.GetConfig()
	if err != nil {
		return err
	}
	// The API server keeps its own order.
	config.QPS = -1
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	addOwn(scheme)
	options := cache.Options{ByObject: map[client.Object]cache.ByObject{}}
	ours := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{managed: "torpor"})}
	children := slices.Concat(hashed, seen)
	for _, kind := range append(children, &corev1.Namespace{}) {
		options.ByObject[kind] = ours
	}
	if mode != "whole" {
		options.DefaultTransform = cache.TransformStripManagedFields()
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Cache:                  options,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
	})
	if err != nil {
		return err
	}
	build := ctrl.NewControllerManagedBy(manager).For(&Tenant{}).WithOptions(controller.Options{MaxConcurrentReconciles: workers})
	var only []builder.WatchesOption
	if mode == "metadata" {
		only = append(only, builder.OnlyMetadata)
	}
	for _, kind := range children {
		build = build.Watches(kind, handler.EnqueueRequestsFromMapFunc(tenantOf), only...)
	}
	for _, kind := range []client.Object{&corev1.Namespace{}, &corev1.Node{}, &schedulingv1.PriorityClass{}} {
		build = build.Watches(kind, handler.EnqueueRequestsFromMapFunc(nobody), only...)
	}
	build = build.Watches(&BotFleet{}, handler.EnqueueRequestsFromMapFunc(tenantOf))
	build = build.Watches(&WorkerPool{}, handler.EnqueueRequestsFromMapFunc(nobody))
	passes := &passes{client: manager.GetClient(), mode: mode, scheme: scheme, tenants: tenants, passed: map[string]bool{}}
	if err := build.Complete(passes); err != nil {
		return err
	}
	return manager.Start(ctrl.SetupSignalHandler())
}

func tenantOf(_ context.Context, object client.Object) []reconcile.Request {
	name, found := strings.CutPrefix(object.GetNamespace(), prefix)
	if !found {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: name}}}
}

func nobody(context.Context, client.Object) []reconcile.Request { return nil }

type passes struct {
	client  client.Client
	mode    string
	scheme  *runtime.Scheme
	tenants int

	lock   sync.Mutex
	passed map[string]bool
}

// Reconcile finds every object of a tenant as it should be.
func (p *passes) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	var tenant Tenant
	if err := p.client.Get(ctx, request.NamespacedName, &tenant); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	namespace := client.InNamespace(prefix + tenant.Name)
	for _, kind := range hashed {
		if err := p.each(ctx, kind, namespace, func(object metav1.Object) error {
			if object.GetAnnotations()[appliedHash] == "" {
				return fmt.Errorf("%s/%s bears no hash", object.GetNamespace(), object.GetName())
			}
			return nil
		}); err != nil {
			return reconcile.Result{}, err
		}
	}
	for _, kind := range seen {
		if err := p.each(ctx, kind, namespace, func(metav1.Object) error { return nil }); err != nil {
			return reconcile.Result{}, err
		}
	}
	var fleets BotFleetList
	if err := p.client.List(ctx, &fleets, namespace); err != nil {
		return reconcile.Result{}, err
	}
	p.pass(tenant.Name)
	return reconcile.Result{}, nil
}

// All objects of a kind in a namespace, which the cache has.
func (p *passes) each(ctx context.Context, kind client.Object, namespace client.InNamespace, look func(metav1.Object) error) error {
	gvk, err := apiutil.GVKForObject(kind, p.scheme)
	if err != nil {
		return err
	}
	gvk.Kind += "List"
	var list client.ObjectList
	if p.mode == "metadata" {
		partial := &metav1.PartialObjectMetadataList{}
		partial.SetGroupVersionKind(gvk)
		list = partial
	} else {
		made, err := p.scheme.New(gvk)
		if err != nil {
			return err
		}
		list = made.(client.ObjectList)
	}
	// Nothing is changed, so nothing need be copied.
	if err := p.client.List(ctx, list, namespace, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	return eachItem(list, look)
}

// Tells when all Tenants have had a pass.
func (p *passes) pass(name string) {
	p.lock.Lock()
	defer p.lock.Unlock()
	before := len(p.passed)
	p.passed[name] = true
	if before < p.tenants && len(p.passed) == p.tenants {
		fmt.Printf("verified %d\n", p.tenants)
		go func() {
			time.Sleep(settles)
			// Go keeps what it needed for the start for minutes. That is not held against it.
			debug.FreeOSMemory()
		}()
	}
}

func addOwn(scheme *runtime.Scheme) {
	version := schema.GroupVersion{Group: "torpor.dev", Version: "v1alpha1"}
	scheme.AddKnownTypes(version, &Tenant{}, &TenantList{}, &BotFleet{}, &BotFleetList{}, &WorkerPool{}, &WorkerPoolList{})
	metav1.AddToGroupVersion(scheme, version)
}
