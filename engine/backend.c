/* backend: the table of backends; a new one is a file and a line here. */
#include "engine/backend.h"
#include "engine/err.h"
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { THREADS_MAX = 1024 };

const struct backend_ops *const backends_all[] = {&backend_cpu, &backend_cuda, NULL};

int backend_open(struct backend *be, const char *kind, const struct backend_opts *opts)
{
    char names[128] = "";
    size_t at = 0;
    for (int i = 0; backends_all[i]; i++) {
        const struct backend_ops *ops = backends_all[i];
        if (strcmp(ops->name, kind) == 0) {
            *be = (struct backend){.ops = ops};
            int rc = ops->open(be, opts);
            if (rc)
                backend_close(be);
            return rc;
        }
        if (at < sizeof names)
            at += (size_t)snprintf(names + at, sizeof names - at, i ? ", %s" : "%s", ops->name);
    }
    FAIL(ERR_CONFIG, "device '%s': expected one of: %s", kind, names);
}

void backend_close(struct backend *be)
{
    if (be->ops)
        be->ops->close(be);
    *be = (struct backend){0};
}

/* Pointers to objects are of one size here, not of one type. */
int backend_take(struct backend *be, size_t n, size_t size, void *out)
{
    void *p = NULL;
    TRY(be->ops->alloc(be, (n ? n : 1) * size, &p));
    memcpy(out, &p, sizeof p);
    return 0;
}

static int usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

int backend_threads(const struct backend_opts *opts, int *out)
{
    if (opts->threads < 0 || opts->threads > THREADS_MAX)
        FAIL(ERR_CONFIG, "device threads: expected 0 (all cores) to %d, found %d", THREADS_MAX,
             opts->threads);
    *out = opts->threads ? opts->threads : usable_cores();
    return 0;
}
