/* Loaded into `postgres` before it starts: answers with its own names for the numbers on standard input. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

__attribute__((constructor)) static void answer(void)
{
    const char *(*event)(unsigned) = (const char *(*)(unsigned)) dlsym(RTLD_DEFAULT, "pgstat_get_wait_event");
    const char *(*kind)(unsigned) = (const char *(*)(unsigned)) dlsym(RTLD_DEFAULT, "pgstat_get_wait_event_type");
    const char *(*backend)(int) = (const char *(*)(int)) dlsym(RTLD_DEFAULT, "GetBackendTypeDesc");
    unsigned code;

    while (scanf("%u", &code) == 1)
        printf("%u\t%s\t%s\n", code, kind(code), event(code));
    for (int number = 0; number < 24; number++)
        printf("backend\t%d\t%s\n", number, backend(number));
    fflush(stdout);
    _Exit(0);
}
