/* Arms agree when their configurations are equal once what they compare is made equal: draft sections, or for
 * scored answers the model's numbers. A sweep over temperatures and strategies has a plain arm for every
 * temperature, and each arm must meet its own. */
#include "experiments/baseline.h"
#include "engine/err.h"
#include "experiments/config_whole.h"
#include <stdlib.h>
#include <string.h>

struct key {
    char *settings; /* owned: the configuration without what is compared; NULL: it cannot be read */
    int plain;      /* 1: an arm that others are compared with */
};

static void forget_draft(struct config *c)
{
    if (c->draft.reference)
        c->draft.reference[0] = 0;
    c->draft.max_depth = c->draft.max_nodes = 1;
    memset(c->draft.option, 0, sizeof c->draft.option);
}

/* The arm's configuration with `sets` in force; NULL: it cannot be read. *as_stored: the model's numbers
 * before. */
static char *settings(const struct trace_arm *arm, const char *const *sets, int n_sets, int *as_stored)
{
    struct config was = {0}, c = {0};
    char *text = NULL;
    size_t n = strlen(arm->config);
    if (!config_parse(&was, arm->config, n, arm->label, NULL, 0) &&
        !config_parse(&c, arm->config, n, arm->label, sets, n_sets)) {
        *as_stored = config_numbers_as_stored(&was);
        forget_draft(&c);
        text = config_dump(&c);
    }
    err_clear();
    config_deinit(&was);
    config_deinit(&c);
    return text;
}

static struct key key_of(const struct trace_arm *arm, int scored)
{
    static const char *const plain[] = {"draft.strategy=none"}, *const stored[] = {
                                                                    "model.weights=bf16",
                                                                    "model.activations=bf16",
                                                                    "model.calibration=", "model.kv=bf16"};
    struct key k = {0};
    int as_stored = 0;
    k.settings = scored ? settings(arm, stored, 4, &as_stored) : settings(arm, plain, 1, &as_stored);
    k.plain = scored ? as_stored : !strcmp(arm->strategy, "none");
    return k;
}

/* The first plain arm with the same settings, -1: none. A plain arm is its own. */
static int find(const struct key *key, int n, int arm)
{
    if (key[arm].plain)
        return arm;
    for (int b = 0; b < n; b++)
        if (key[b].plain && key[arm].settings && key[b].settings &&
            !strcmp(key[arm].settings, key[b].settings))
            return b;
    return -1;
}

int baseline_find(const struct trace *t, int *baseline, int *mixed)
{
    struct key *key = calloc((size_t)t->n_arms + 1, sizeof *key);
    if (!key)
        FAIL(ERR_MEMORY, "no memory for %d arms", (int)t->n_arms);
    int plain = 0, only = -1, scored = trace_is_scored(t);
    for (int i = 0; i < t->n_arms; i++) {
        key[i] = key_of(&t->arms[i], scored);
        if (key[i].plain && plain++ == 0)
            only = i;
    }
    only = plain == 1 ? only : -1;
    for (int i = 0; i < t->n_arms; i++) {
        int exact = find(key, (int)t->n_arms, i);
        baseline[i] = exact >= 0 ? exact : only;
        if (mixed)
            mixed[i] = exact < 0 && only >= 0;
    }
    for (int i = 0; i < t->n_arms; i++)
        free(key[i].settings);
    free(key);
    return 0;
}
