//go:build others

package main

import (
	"strings"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	route "github.com/openshift/api/route/v1"
	security "github.com/openshift/api/security/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What quay-operator's QuayRegistry takes, after its apis/quay/v1 (Apache-2.0): the module itself is not served.
type quayRegistry struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata,omitempty"`
	Spec            quaySpec `json:"spec,omitempty"`
}

type quaySpec struct {
	ConfigBundleSecret string          `json:"configBundleSecret,omitempty"`
	Components         []quayComponent `json:"components,omitempty"`
}

type quayComponent struct {
	Kind      string                     `json:"kind"`
	Managed   bool                       `json:"managed"`
	Overrides *quayOverrides             `json:"overrides,omitempty"`
	SecretRef *core.LocalObjectReference `json:"secretRef,omitempty"`
}

type quayOverrides struct {
	VolumeSize       *resource.Quantity    `json:"volumeSize,omitempty"`
	StorageClassName *string               `json:"storageClassName,omitempty"`
	Env              []core.EnvVar         `json:"env,omitempty"`
	Replicas         *int32                `json:"replicas,omitempty"`
	Affinity         *core.Affinity        `json:"affinity,omitempty"`
	Labels           map[string]string     `json:"labels,omitempty"`
	Annotations      map[string]string     `json:"annotations,omitempty"`
	Resources        *quayResources        `json:"resources,omitempty"`
	SecurityContext  *core.SecurityContext `json:"securityContext,omitempty"`
}

type quayResources struct {
	Limits   core.ResourceList `json:"limits,omitempty"`
	Requests core.ResourceList `json:"requests,omitempty"`
}

// Kubernetes' own types are those of the version that is validated against.
func described(path string) bool { return !strings.HasPrefix(path, "k8s.io/api") }

// What the CRD does not require, though the field has no `omitempty`.
var optionals = map[string]bool{
	"Certificate.status":                true,
	"Issuer.status":                     true,
	"SecurityContextConstraints.users":  true,
	"SecurityContextConstraints.groups": true,
}

var kinds = map[string]any{
	"route.openshift.io/v1/Route":                         route.Route{},
	"security.openshift.io/v1/SecurityContextConstraints": security.SecurityContextConstraints{},
	"cert-manager.io/v1/Issuer":                           certmanager.Issuer{},
	"cert-manager.io/v1/Certificate":                      certmanager.Certificate{},
	"quay.redhat.com/v1/QuayRegistry":                     quayRegistry{},
}
