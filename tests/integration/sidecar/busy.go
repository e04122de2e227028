// Generics, closures, inlined calls, the standard library: what Go's names have to cope with.
package main

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
)

type item struct {
	Name string
	Rank int
}

func small(a, b int) int { return a*31 + b }
func middle(a int) int   { return small(a, 7) ^ small(a, 9) }

func mapAll[T, U any](in []T, f func(T) U) []U {
	out := make([]U, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

//go:noinline
func work(n int) int {
	items := make([]item, 0, n)
	total := 0
	for i := 0; i < n; i++ {
		total += middle(i)
		items = append(items, item{fmt.Sprint(total), i})
	}
	names := mapAll(items, func(i item) string { return strings.ToUpper(i.Name) })
	sort.Slice(items, func(a, b int) bool { return items[a].Name < items[b].Name })
	raw, _ := json.Marshal(items)
	return len(raw) + len(names)
}

func main() {
	total := 0
	fmt.Println("ready")
	for {
		total += work(1000)
		if total < 0 {
			break
		}
	}
}
