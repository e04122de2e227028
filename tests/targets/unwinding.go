// Goroutines that recurse, grow their stacks and collect garbage. Usage: unwinding SECONDS (of CPU)
package main

import (
	"os"
	"strconv"
	"sync"
	"syscall"
)

var sink [][]byte

//go:noinline
func spin(n uint64) uint64 {
	value := uint64(1)
	for i := uint64(0); i < n; i++ {
		value = value*6364136223846793005 + 1442695040888963407
	}
	return value
}

//go:noinline
func recurse(depth int) uint64 {
	var kept [64]uint64
	kept[depth%64] = uint64(depth)
	if depth == 0 {
		return spin(20000)
	}
	return recurse(depth-1) + kept[depth%64]
}

func used() float64 {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	var group sync.WaitGroup
	for i := 0; i < 2; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for used() < seconds {
				if recurse(20) == 7 {
					sink = append(sink, make([]byte, 1024))
				}
				_ = strconv.Itoa(int(spin(100)))
			}
		}()
	}
	group.Wait()
}
