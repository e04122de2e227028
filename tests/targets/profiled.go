// A Go program that computes, holds memory, and serves its profiles on a free port, which it prints.
package main

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof"
)

var held [][]byte

//go:noinline
func spin(n int) (sum int) {
	for i := 0; i < n; i++ {
		sum += i * i
	}
	return
}

//go:noinline
func keep() {
	held = append(held[max(0, len(held)-64):], make([]byte, 1<<18))
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			spin(2_000_000)
			keep()
		}
	}()
	panic(http.Serve(listener, nil))
}
