/* Preloaded into a process: lets its k-th allocation fail, hides files from it, takes prlimit away. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long left = -1; /* allocations until one fails; negative: none does */
static size_t least;
static int for_ever;

/* From now on the k-th allocation of `size` bytes or more fails; with `persistent`, all after it fail too. */
void fault_arm(long k, size_t size, int persistent)
{
    least = size;
    for_ever = persistent;
    __atomic_store_n(&left, k, __ATOMIC_SEQ_CST);
}

static int fails(size_t size)
{
    if (__atomic_load_n(&left, __ATOMIC_RELAXED) < 0 || size < least)
        return 0;
    long now = __atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST);
    if (now == 0 && for_ever)
        __atomic_store_n(&left, 1, __ATOMIC_SEQ_CST);
    return now == 0 ? (errno = ENOMEM, 1) : 0;
}

void *malloc(size_t size) { return fails(size) ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails(count * size) ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return fails(size) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t alignment, size_t size) { return fails(size) ? NULL : __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return fails(size) ? NULL : __libc_memalign(alignment, size); }

int posix_memalign(void **place, size_t alignment, size_t size)
{
    void *block = fails(size) ? NULL : __libc_memalign(alignment, size);
    if (!block)
        return ENOMEM;
    *place = block;
    return 0;
}

/* FAULT_HIDE=/clear_refs,/cgroup/: no path that holds one of these can be opened. */
static int hidden(const char *path)
{
    const char *hide = getenv("FAULT_HIDE");
    char one[256];
    while (hide && *hide) {
        size_t length = strcspn(hide, ",");
        if (length && length < sizeof one) {
            memcpy(one, hide, length);
            one[length] = 0;
            if (strstr(path, one))
                return errno = ENOENT, 1;
        }
        hide += length + (hide[length] == ',');
    }
    return 0;
}

#define OPEN(name)                                                                                  \
    int name(const char *path, int flags, ...)                                                      \
    {                                                                                               \
        static int (*real)(const char *, int, ...);                                                 \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        int mode = va_arg(rest, int);                                                               \
        va_end(rest);                                                                               \
        if (hidden(path))                                                                           \
            return -1;                                                                              \
        if (!real)                                                                                  \
            real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                        \
        return real(path, flags, mode);                                                             \
    }
OPEN(open)
OPEN(open64)

/* FAULT_PRLIMIT=refuse: it may not be called. FAULT_PRLIMIT=ignore: it says yes and does nothing. */
int prlimit64(pid_t pid, enum __rlimit_resource resource, const struct rlimit64 *wanted, struct rlimit64 *before)
{
    static int (*real)(pid_t, int, const struct rlimit64 *, struct rlimit64 *);
    const char *how = getenv("FAULT_PRLIMIT");
    if (how && wanted && resource == RLIMIT_DATA) {
        if (strcmp(how, "refuse") == 0)
            return errno = EPERM, -1;
        wanted = NULL;
    }
    if (!real)
        real = (int (*)(pid_t, int, const struct rlimit64 *, struct rlimit64 *))dlsym(RTLD_NEXT, "prlimit64");
    return real(pid, resource, wanted, before);
}

int prlimit(pid_t pid, enum __rlimit_resource resource, const struct rlimit *wanted, struct rlimit *before)
{
    return prlimit64(pid, resource, (const struct rlimit64 *)wanted, (struct rlimit64 *)before);
}
