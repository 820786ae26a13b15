/* ngram: the text repeats itself; kernels/ngram.h says how it is searched. (transformers also cuts a proposal
 * at an end-of-text token; here the loop ends the answer there.) The state is the text alone, which is with
 * the step. */
#include "drafts/drafts.h"
#include "engine/backend.h"
#include "engine/err.h"
#include <stdlib.h>

enum { OPT_MIN, OPT_MAX, OPT_MATCH, OPT_SCOPE, OPT_BRANCHES };

static const char *const match_words[] = {"first", "recent", NULL};
static const char *const scope_words[] = {"all", "prompt", NULL};
static const struct draft_option ngram_options[] = {
    [OPT_MIN] = {"min", "shortest n-gram to look up", 1, 1, NGRAM_SIZE_MAX, 1, NULL},
    [OPT_MAX] = {"max", "longest n-gram, looked up first", 3, 1, NGRAM_SIZE_MAX, 1, NULL},
    [OPT_MATCH] = {"match", "which of several places: the first or the most recent", 0, 0, 1, 1, match_words},
    [OPT_SCOPE] = {"scope", "where to look: all of the text, or the prompt alone", 0, 0, 1, 1, scope_words},
    [OPT_BRANCHES] = {"branches", "different continuations to propose, more than 1 makes a tree", 1, 1,
                      NGRAM_BRANCHES_MAX, 1, NULL},
    {0},
};

struct ngram_draft {
    struct backend *be; /* borrowed */
    struct ngram search;
    int max_nodes;
};

static void ngram_close(void *self)
{
    free(self);
}

static int ngram_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    const int min = (int)env->option[OPT_MIN], max = (int)env->option[OPT_MAX];
    const int branches = (int)env->option[OPT_BRANCHES];
    if (min > max)
        FAIL(ERR_CONFIG, "draft 'ngram': expected min <= max, found min %d and max %d", min, max);
    struct ngram_draft *g = calloc(1, sizeof *g);
    if (!g)
        FAIL(ERR_MEMORY, "draft 'ngram': out of memory");
    *g = (struct ngram_draft){.be = env->be,
                              .search = {.min = min,
                                         .max = max,
                                         .branches = branches,
                                         .match = (enum ngram_match)env->option[OPT_MATCH],
                                         .scope = (enum ngram_scope)env->option[OPT_SCOPE]},
                              .max_nodes = env->max_nodes};
    if (env->max_depth < env->max_nodes / branches)
        g->max_nodes = env->max_depth * branches;
    *self = g;
    return 0;
}

static int ngram_max_nodes(const void *self)
{
    const struct ngram_draft *g = self;
    return g->max_nodes;
}

static int ngram_enqueue(void *self, const struct step *step, int reach)
{
    (void)reach;
    const struct ngram_draft *g = self;
    struct ngram a = g->search;
    a.seq = step->seq;
    a.text = step->text;
    a.cap = step->cap;
    a.trees = &step->trees;
    a.begin = &step->clock[STEP_BEGIN];
    return g->be->ops->ngram(g->be, &a);
}

const struct draft_ops draft_ngram = {.name = "ngram",
                                      .help = "looks the last tokens up in the text so far (prompt lookup)",
                                      .options = ngram_options,
                                      .open = ngram_open,
                                      .max_nodes = ngram_max_nodes,
                                      .enqueue = ngram_enqueue,
                                      .close = ngram_close};
