/* none: proposes nothing, so that plain decoding is the very same loop. */
#include "drafts/drafts.h"
#include <stddef.h>

static int none_open(void **self, const struct draft_env *env)
{
    (void)env;
    *self = NULL;
    return 0;
}

static int none_begin(void *self, const struct draft_text *text)
{
    (void)self, (void)text;
    return 0;
}

static int none_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    (void)self, (void)text, (void)n, (void)out;
    return 0;
}

static int none_observe(void *self, const struct draft_seen *seen, int n)
{
    (void)self, (void)seen, (void)n;
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
                                     .begin = none_begin,
                                     .propose = none_propose,
                                     .observe = none_observe,
                                     .close = none_close};
