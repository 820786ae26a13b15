/* oracle: proposes what an earlier run of the same request emitted. Under `greedy` and `coupled`, with the
 * seed of that run, the proposal is what the target will say: no draft can do better, so this is the upper
 * bound of every speed-up. `accept` below 1 spoils each position with a fixed probability and so makes drafts
 * of any chosen quality, the same on every run. A text that has left the reference gets no proposal. */
#include "drafts/drafts.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include <stdlib.h>

enum { OPT_ACCEPT };
static const struct draft_option oracle_options[] = {
    [OPT_ACCEPT] = {"accept", "probability that the token proposed for a position is the true one", 1, 0, 1,
                    0, NULL},
    {0},
};

struct oracle_slot {
    const int *reference; /* lent by the caller of the run [n_reference] */
    int n_reference;
    int agreed; /* leading tokens of the answer that equal the reference's; stops growing at the first that
                   does not */
};

struct oracle {
    int (*reference)(void *ctx, uint32_t request, const int **tokens);
    void *ctx;
    uint64_t seed;
    double accept;
    int vocab, max_nodes;
    struct oracle_slot *slot; /* owned [slots] */
};

static void oracle_close(void *self)
{
    struct oracle *o = self;
    if (!o)
        return;
    free(o->slot);
    free(o);
}

static int oracle_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    if (!env->reference)
        FAIL(ERR_CONFIG,
             "draft 'oracle': expected the outputs of an earlier run of the same requests, found none");
    struct oracle *o = calloc(1, sizeof *o);
    if (o)
        *o = (struct oracle){.reference = env->reference,
                             .ctx = env->reference_ctx,
                             .seed = env->seed,
                             .accept = env->option[OPT_ACCEPT],
                             .vocab = env->vocab,
                             .max_nodes = env->max_depth < env->max_nodes ? env->max_depth : env->max_nodes,
                             .slot = calloc((size_t)env->slots, sizeof *o->slot)};
    if (!o || !o->slot) {
        oracle_close(o);
        FAIL(ERR_MEMORY, "draft 'oracle': out of memory for %d sequences", env->slots);
    }
    *self = o;
    return 0;
}

static int oracle_max_nodes(const void *self)
{
    const struct oracle *o = self;
    return o->max_nodes;
}

static int oracle_begin(void *self, const struct draft_text *text)
{
    struct oracle *o = self;
    struct oracle_slot *s = &o->slot[text->slot];
    *s = (struct oracle_slot){0};
    s->n_reference = o->reference(o->ctx, text->request, &s->reference);
    return 0;
}

static int oracle_observe(void *self, const struct draft_seen *seen, int n)
{
    const struct oracle *o = self;
    for (int i = 0; i < n; i++) {
        const struct draft_text *t = &seen[i].text;
        struct oracle_slot *s = &o->slot[t->slot];
        while (s->agreed < s->n_reference && s->agreed < t->n - t->n_prompt &&
               t->tokens[t->n_prompt + s->agreed] == s->reference[s->agreed])
            s->agreed++;
    }
    return 0;
}

/* The true token, or its neighbour in the vocabulary, which is surely wrong. */
static int spoiled(const struct oracle *o, const struct draft_text *text, int position, int token)
{
    float u = philox_uniform(philox(o->seed, text->request, (uint32_t)position, PHILOX_ORACLE, 0).v[0]);
    return (double)u < o->accept ? token : (token + 1) % o->vocab;
}

static int oracle_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    const struct oracle *o = self;
    for (int i = 0; i < n; i++) {
        const struct draft_text *t = &text[i];
        const struct oracle_slot *s = &o->slot[t->slot];
        int answered = t->n - t->n_prompt;
        if (s->agreed < answered)
            continue;
        for (int k = answered, node = TREE_ROOT; k < s->n_reference; k++) {
            node = tree_add(&out[i], node, spoiled(o, t, t->n_prompt + k, s->reference[k]), 0.0f, NULL);
            if (node < 0)
                break;
        }
    }
    return 0;
}

const struct draft_ops draft_oracle = {
    .name = "oracle",
    .help = "what an earlier run emitted: the upper bound, or synthetic acceptance",
    .needs = DRAFT_REFERENCE | DRAFT_HOST,
    .options = oracle_options,
    .open = oracle_open,
    .max_nodes = oracle_max_nodes,
    .begin = oracle_begin,
    .propose = oracle_propose,
    .observe = oracle_observe,
    .close = oracle_close};
