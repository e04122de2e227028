//go:build !others

package main

import (
	admission "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
)

// Every type is described here.
func described(string) bool { return true }

var optionals = map[string]bool{}

var kinds = map[string]any{
	"v1/ConfigMap": core.ConfigMap{}, "v1/Namespace": core.Namespace{}, "v1/Pod": core.Pod{},
	"v1/PersistentVolumeClaim": core.PersistentVolumeClaim{}, "v1/Secret": core.Secret{},
	"v1/Service": core.Service{}, "v1/ServiceAccount": core.ServiceAccount{},
	"apps/v1/Deployment": apps.Deployment{}, "apps/v1/StatefulSet": apps.StatefulSet{},
	"batch/v1/Job": batch.Job{}, "autoscaling/v2/HorizontalPodAutoscaler": autoscaling.HorizontalPodAutoscaler{},
	"networking.k8s.io/v1/NetworkPolicy": networking.NetworkPolicy{},
	"networking.k8s.io/v1/Ingress":       networking.Ingress{},
	"policy/v1/PodDisruptionBudget":      policy.PodDisruptionBudget{},
	"rbac.authorization.k8s.io/v1/Role":  rbac.Role{}, "rbac.authorization.k8s.io/v1/RoleBinding": rbac.RoleBinding{},
	"rbac.authorization.k8s.io/v1/ClusterRole":                     rbac.ClusterRole{},
	"rbac.authorization.k8s.io/v1/ClusterRoleBinding":              rbac.ClusterRoleBinding{},
	"admissionregistration.k8s.io/v1/MutatingWebhookConfiguration": registration.MutatingWebhookConfiguration{},
	"admission.k8s.io/v1/AdmissionReview":                          admission.AdmissionReview{},
	"authentication.k8s.io/v1/TokenReview":                         authentication.TokenReview{},
}
