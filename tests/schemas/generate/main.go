// Writes the closed schema of the kinds that the tests check: every field of every type that their Go packages
// know, by reflection, as JSON on stdout. Kubernetes' with the API of one version, those of other projects with
// checkouts or modules of theirs (see others.go):
//
//	go mod init generate && go get k8s.io/api@v0.37.2 && go run . "k8s.io/api, Kubernetes 1.37 (Apache-2.0)"
//	go run -tags others . "github.com/openshift/api ... (Apache-2.0)"
//
// A field without `omitempty` is required, as the API's conventions have it.
package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
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
	"k8s.io/apimachinery/pkg/api/resource.Quantity":                 "quantity",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":                     "string",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":                "string",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Duration":                 "string",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSON": "any",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString":               "int-or-string",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":                 "any",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":                  "any",
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
		name := "#" + strings.Join(path[max(0, len(path)-2):], ".") + "." + kind.Name()
		if _, known := types[name]; !known && described(kind.PkgPath()) {
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
		optional = optional || optionals[kind.Name()+"."+name]
		into[name] = field{describe(one.Type), !optional}
	}
}

func main() {
	written := document{os.Args[1], map[string]string{}, types}
	for kind, sample := range kinds {
		written.Kinds[kind] = describe(reflect.TypeOf(sample))
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(written); err != nil {
		panic(err)
	}
}
