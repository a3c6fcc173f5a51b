package main

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// body is spec and status as they came, so that no type need be generated.
type body struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              runtime.RawExtension `json:"spec,omitempty"`
	Status            runtime.RawExtension `json:"status,omitempty"`
}

func (b *body) copied() body {
	out := *b
	out.ObjectMeta = *b.ObjectMeta.DeepCopy()
	out.Spec = *b.Spec.DeepCopy()
	out.Status = *b.Status.DeepCopy()
	return out
}

type list[T any] struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []T `json:"items"`
}

func (l *list[T]) copied(each func(*T) T) list[T] {
	out := list[T]{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy(), Items: make([]T, len(l.Items))}
	for i := range l.Items {
		out.Items[i] = each(&l.Items[i])
	}
	return out
}

// Tenant, BotFleet and WorkerPool are Torpor's.
type (
	Tenant         struct{ body }
	TenantList     struct{ list[Tenant] }
	BotFleet       struct{ body }
	BotFleetList   struct{ list[BotFleet] }
	WorkerPool     struct{ body }
	WorkerPoolList struct{ list[WorkerPool] }
)

func (t *Tenant) DeepCopyObject() runtime.Object     { return &Tenant{t.copied()} }
func (t *BotFleet) DeepCopyObject() runtime.Object   { return &BotFleet{t.copied()} }
func (t *WorkerPool) DeepCopyObject() runtime.Object { return &WorkerPool{t.copied()} }
func (l *TenantList) DeepCopyObject() runtime.Object {
	return &TenantList{l.copied(func(t *Tenant) Tenant { return Tenant{t.copied()} })}
}
func (l *BotFleetList) DeepCopyObject() runtime.Object {
	return &BotFleetList{l.copied(func(t *BotFleet) BotFleet { return BotFleet{t.copied()} })}
}
func (l *WorkerPoolList) DeepCopyObject() runtime.Object {
	return &WorkerPoolList{l.copied(func(t *WorkerPool) WorkerPool { return WorkerPool{t.copied()} })}
}

func eachItem(list client.ObjectList, look func(metav1.Object) error) error {
	return meta.EachListItem(list, func(item runtime.Object) error {
		object, err := meta.Accessor(item)
		if err != nil {
			return err
		}
		return look(object)
	})
}
