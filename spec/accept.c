/* accept: the table of rules. What they do is kernels/accept.h. */
#include "spec/accept.h"

const struct accept_rule accept_rules[] = {
    {"greedy", "the target's most probable token; equals plain greedy decoding", 0, ACCEPT_GREEDY},
    {"coupled", "samples with noise keyed by position; equals plain sampling with the same seed", 0,
     ACCEPT_COUPLED},
    {"rejection", "speculative sampling: distributed as the target, but not equal to plain sampling", 0,
     ACCEPT_REJECTION},
    {"relaxed", "LOSSY: also accepts tokens close to the most probable one", 1, ACCEPT_RELAXED},
    {.name = NULL},
};

const struct accept_rule *accept_rule_find(const char *name)
{
    for (const struct accept_rule *r = accept_rules; r->name; r++)
        if (strcmp(r->name, name) == 0)
            return r;
    return NULL;
}
