// Writes the closed schema of the Kubernetes kinds that the tests check: every field of every type that the Go
// API packages know, by reflection, as JSON on stdout. Run with the API of one version:
//
//	go mod init generate && go get k8s.io/api@v0.37.2 && go run . 1.37
//
// A field without `omitempty` is required, as the API's conventions have it.
package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"

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

type field struct {
	Type     string `json:"type"`
	Required bool   `json:"required,omitempty"`
}

type document struct {
	Source string                      `json:"source"`
	Kinds  map[string]string           `json:"kinds"`
	Types  map[string]map[string]field `json:"types"`
}

var types = map[string]map[string]field{}

// Types that are written as something else than their fields.
var scalars = map[string]string{
	"k8s.io/apimachinery/pkg/api/resource.Quantity":      "quantity",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":          "string",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":     "string",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString":    "int-or-string",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":      "any",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":       "any",
}

func describe(kind reflect.Type) string {
	if name, found := scalars[kind.PkgPath()+"."+kind.Name()]; found {
		return name
	}
	switch kind.Kind() {
	case reflect.Pointer:
		return describe(kind.Elem())
	case reflect.Slice:
		if kind.Elem().Kind() == reflect.Uint8 {
			return "string"
		}
		return "[]" + describe(kind.Elem())
	case reflect.Map:
		return "{}" + describe(kind.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint32:
		return "integer"
	case reflect.Float64:
		return "number"
	case reflect.Struct:
		path := strings.Split(kind.PkgPath(), "/")
		name := "#" + strings.Join(path[len(path)-2:], ".") + "." + kind.Name()
		if _, known := types[name]; !known {
			types[name] = map[string]field{}
			fields(kind, types[name])
		}
		return name
	}
	return "any"
}

func fields(kind reflect.Type, into map[string]field) {
	for i := range kind.NumField() {
		one := kind.Field(i)
		name, options, _ := strings.Cut(one.Tag.Get("json"), ",")
		if one.Anonymous && name == "" {
			fields(one.Type, into)
			continue
		}
		if name == "-" || name == "" {
			continue
		}
		optional := strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		into[name] = field{describe(one.Type), !optional}
	}
}

func main() {
	kinds := map[string]any{
		"v1/ConfigMap": core.ConfigMap{}, "v1/Namespace": core.Namespace{}, "v1/Pod": core.Pod{},
		"v1/PersistentVolumeClaim": core.PersistentVolumeClaim{}, "v1/Secret": core.Secret{},
		"v1/Service": core.Service{}, "v1/ServiceAccount": core.ServiceAccount{},
		"apps/v1/Deployment": apps.Deployment{}, "apps/v1/StatefulSet": apps.StatefulSet{},
		"batch/v1/Job": batch.Job{}, "autoscaling/v2/HorizontalPodAutoscaler": autoscaling.HorizontalPodAutoscaler{},
		"networking.k8s.io/v1/NetworkPolicy": networking.NetworkPolicy{},
		"networking.k8s.io/v1/Ingress":       networking.Ingress{},
		"policy/v1/PodDisruptionBudget":      policy.PodDisruptionBudget{},
		"rbac.authorization.k8s.io/v1/Role":  rbac.Role{}, "rbac.authorization.k8s.io/v1/RoleBinding": rbac.RoleBinding{},
		"rbac.authorization.k8s.io/v1/ClusterRole":                      rbac.ClusterRole{},
		"rbac.authorization.k8s.io/v1/ClusterRoleBinding":               rbac.ClusterRoleBinding{},
		"admissionregistration.k8s.io/v1/MutatingWebhookConfiguration": registration.MutatingWebhookConfiguration{},
		"admission.k8s.io/v1/AdmissionReview":                           admission.AdmissionReview{},
		"authentication.k8s.io/v1/TokenReview":                          authentication.TokenReview{},
	}
	written := document{"k8s.io/api, Kubernetes " + os.Args[1] + " (Apache-2.0)", map[string]string{}, types}
	for kind, sample := range kinds {
		written.Kinds[kind] = describe(reflect.TypeOf(sample))
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(written); err != nil {
		panic(err)
	}
}
