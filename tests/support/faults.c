/* Makes one call of the C library fail with the errno in FAULT_<call>, after the first FAULT_AFTER calls of it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

static int fails(const char *variable, int *calls)
{
    const char *number = getenv(variable), *after = getenv("FAULT_AFTER");
    if (!number || (*calls)++ < (after ? atoi(after) : 0))
        return 0;
    errno = atoi(number);
    return 1;
}

int flock(int descriptor, int operation)
{
    static int calls;
    int (*real)(int, int) = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    return fails("FAULT_FLOCK", &calls) ? -1 : real(descriptor, operation);
}

int fsync(int descriptor)
{
    static int calls;
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return fails("FAULT_FSYNC", &calls) ? -1 : real(descriptor);
}

int rename(const char *from, const char *to)
{
    static int calls;
    int (*real)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return fails("FAULT_RENAME", &calls) ? -1 : real(from, to);
}
