/* backend: the table of backends; a new one is a file and a line here. */
#include "engine/backend.h"
#include "engine/err.h"
#include <stdio.h>
#include <string.h>

static const struct backend_ops *const backends[] = {&backend_cpu};
enum { N_BACKENDS = sizeof backends / sizeof *backends };

int backend_open(struct backend *be, const char *kind, const struct backend_opts *opts)
{
    char names[128] = "";
    size_t at = 0;
    for (int i = 0; i < N_BACKENDS; i++) {
        if (strcmp(backends[i]->name, kind) == 0) {
            *be = (struct backend){.ops = backends[i]};
            int rc = be->ops->open(be, opts);
            if (rc)
                backend_close(be);
            return rc;
        }
        if (at < sizeof names)
            at += (size_t)snprintf(names + at, sizeof names - at, i ? ", %s" : "%s", backends[i]->name);
    }
    FAIL(ERR_CONFIG, "device '%s': expected one of: %s", kind, names);
}

void backend_close(struct backend *be)
{
    if (be->ops)
        be->ops->close(be);
    *be = (struct backend){0};
}
