// What makes stacks hard to unwind, in threads: recursion, exceptions, a stack realigned for vectors, frames
// of unknown size, a signal's handler (on its own stack too), calls of libc and of the vDSO.
// Built without frame pointers. Usage: unwinding SECONDS (of CPU)

#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define KEPT __attribute__((noinline, noclone))

static volatile unsigned long sink;

KEPT static void spin(unsigned long rounds) {
  unsigned long value = sink + 1;
  for (unsigned long i = 0; i < rounds; i++) value = value * 6364136223846793005UL + 1442695040888963407UL;
  sink = value;
}

KEPT static unsigned long recurse(int depth, unsigned long seed) {
  volatile unsigned long kept[4] = {seed, seed + 1, seed + 2, seed + 3};
  if (depth == 0) {
    spin(20000);
    return kept[sink % 4];
  }
  return recurse(depth - 1, seed * 3 + kept[seed % 4]) + kept[depth % 4];
}

KEPT static void throws(int depth) {
  std::string text(depth + 20, 'x');
  if (depth == 0) {
    spin(5000);
    throw std::runtime_error(text);
  }
  throws(depth - 1);
  sink += text.size();
}

KEPT static void exceptions() {
  for (int i = 0; i < 20; i++) {
    try {
      throws(6);
    } catch (const std::exception &error) {
      sink += strlen(error.what());
    }
  }
}

// Vectors on the stack of a function that also has a frame of unknown size: the compiler realigns the stack and
// finds the frame through another register than the usual ones.
typedef double Wide __attribute__((vector_size(64)));
KEPT static void touch(Wide *values, char *bytes) {
  for (int i = 0; i < 64; i++) values[i % 4] = values[i % 4] * 1.5 + bytes[i];
  spin(10000);
}
KEPT static void realigned(int size) {
  Wide values[4] = {};
  char *bytes = static_cast<char *>(alloca(size));
  memset(bytes, 1, size);
  touch(values, bytes);
  sink += static_cast<unsigned long>(values[1][2]);
}

static int compare(const void *a, const void *b) {
  spin(20);
  return *static_cast<const int *>(a) - *static_cast<const int *>(b);
}
KEPT static void libraries() {
  std::vector<int> values(300);
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<int>(i * 7919 % 1000);
  qsort(values.data(), values.size(), sizeof values[0], compare);
  std::sort(values.begin(), values.end(), [](int a, int b) { return spin(20), a > b; });
  struct timespec now;
  for (int i = 0; i < 2000; i++) clock_gettime(CLOCK_MONOTONIC, &now);
  sink += now.tv_nsec;
}

KEPT static void handler(int) { spin(20000); }
KEPT static void signals(bool elsewhere) {
  for (int i = 0; i < 20; i++) {
    pthread_kill(pthread_self(), SIGUSR1);
    if (elsewhere) pthread_kill(pthread_self(), SIGUSR2);
  }
}

static void work(double seconds) {
  static thread_local char other_stack[65536];
  stack_t stack = {};
  stack.ss_sp = other_stack;
  stack.ss_size = sizeof other_stack;
  sigaltstack(&stack, nullptr);
  struct timespec used;
  for (int i = 0;; i++) {
    recurse(5 + i % 60, i);
    exceptions();
    realigned(100 + i % 500);
    libraries();
    if (i % 4 == 0) signals(i % 64 == 0);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    if (used.tv_sec + used.tv_nsec * 1e-9 > seconds) break;
  }
}

int main(int, char **arguments) {
  double seconds = atof(arguments[1]);
  struct sigaction action = {};
  action.sa_handler = handler;
  sigaction(SIGUSR1, &action, nullptr);
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR2, &action, nullptr);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++) threads.emplace_back(work, seconds);
  work(seconds);
  for (std::thread &thread : threads) thread.join();
}
