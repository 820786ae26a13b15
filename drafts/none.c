/* none: proposes nothing, so that plain decoding is the very same loop. Trees are empty until someone fills
 * them. */
#include "drafts/drafts.h"
#include <stddef.h>

static int none_open(void **self, const struct draft_env *env)
{
    (void)env;
    *self = NULL;
    return 0;
}

static int none_max_nodes(const void *self)
{
    (void)self;
    return 0;
}

static int none_enqueue(void *self, const struct step *step, int reach)
{
    (void)self, (void)step, (void)reach;
    return 0;
}

static void none_close(void *self)
{
    (void)self;
}

static const struct draft_option none_options[] = {{0}};

const struct draft_ops draft_none = {.name = "none",
                                     .help = "plain decoding, the baseline",
                                     .options = none_options,
                                     .open = none_open,
                                     .max_nodes = none_max_nodes,
                                     .enqueue = none_enqueue,
                                     .close = none_close};
