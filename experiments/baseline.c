/* Arms agree when their configurations are equal once both draft sections are made equal: a sweep over
 * temperatures and strategies has a plain arm for every temperature, and each arm must meet its own. */
#include "experiments/baseline.h"
#include "engine/err.h"
#include "experiments/config.h"
#include <stdlib.h>
#include <string.h>

/* The configuration of an arm without its draft section, as text; NULL: it cannot be read. */
static char *settings(const struct trace_arm *arm)
{
    struct config c = {0};
    static const char *const plain[] = {"draft.strategy=none"};
    if (config_parse(&c, arm->config, strlen(arm->config), arm->label, plain, 1)) {
        err_clear();
        config_deinit(&c);
        return NULL;
    }
    if (c.draft.reference)
        c.draft.reference[0] = 0;
    c.draft.max_depth = c.draft.max_nodes = 1;
    memset(c.draft.option, 0, sizeof c.draft.option);
    char *text = config_dump(&c);
    config_deinit(&c);
    return text;
}

static int is_plain(const struct trace_arm *arm)
{
    return !strcmp(arm->strategy, "none");
}

/* The first plain arm with the same settings, -1: none. A plain arm is its own. */
static int find(const struct trace *t, char *const *key, int arm)
{
    if (is_plain(&t->arms[arm]))
        return arm;
    for (int b = 0; b < t->n_arms; b++)
        if (is_plain(&t->arms[b]) && key[arm] && key[b] && !strcmp(key[arm], key[b]))
            return b;
    return -1;
}

int baseline_find(const struct trace *t, int *baseline, int *mixed)
{
    char **key = calloc((size_t)t->n_arms + 1, sizeof *key);
    if (!key)
        FAIL(ERR_MEMORY, "no memory for %d arms", (int)t->n_arms);
    int plain = 0, only = -1;
    for (int i = 0; i < t->n_arms; i++) {
        key[i] = settings(&t->arms[i]);
        if (is_plain(&t->arms[i]) && plain++ == 0)
            only = i;
    }
    only = plain == 1 ? only : -1;
    for (int i = 0; i < t->n_arms; i++) {
        int exact = find(t, key, i);
        baseline[i] = exact >= 0 ? exact : only;
        if (mixed)
            mixed[i] = exact < 0 && only >= 0;
    }
    for (int i = 0; i < t->n_arms; i++)
        free(key[i]);
    free(key);
    return 0;
}
