"""CPU samples of native code by perf events: ring, address space, ELF objects, names, sampler."""
