/* accept: the table of rules. What they do is kernels/accept.h; here one tree of the host is laid out as its
 * arrays. */
#include "spec/accept.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

enum { NODES_FIRST = 1024 };

/* Room for trees of n nodes and n_q distributions. */
static int reserve(struct accept_scratch *s, int n, int n_q, int vocab)
{
    if (n > s->cap_nodes) {
        int *grown = realloc(s->node, 4 * (size_t)n * sizeof *grown);
        if (!grown)
            FAIL(ERR_MEMORY, "accept: out of memory for trees of %d nodes", n);
        s->node = grown;
        s->cap_nodes = n;
    }
    if (n_q > s->cap_q) {
        float *grown = realloc(s->q, (size_t)n_q * (size_t)vocab * sizeof *grown);
        if (!grown)
            FAIL(ERR_MEMORY, "accept: out of memory for %d distributions over %d tokens", n_q, vocab);
        s->q = grown;
        s->cap_q = n_q;
    }
    return 0;
}

int accept_scratch_init(struct accept_scratch *s, int vocab)
{
    size_t n = (size_t)vocab;
    *s = (struct accept_scratch){.dist = {.id = calloc(n, sizeof(int)),
                                          .prob = calloc(n, sizeof(float)),
                                          .work = calloc(n, sizeof(float))},
                                 .kernel = calloc(1, accept_bytes(vocab))};
    if (s->dist.id && s->dist.prob && s->dist.work && s->kernel && !reserve(s, NODES_FIRST, 0, vocab))
        return 0;
    accept_scratch_deinit(s);
    FAIL(ERR_MEMORY, "accept: out of memory for distributions over %d tokens", vocab);
}

void accept_scratch_deinit(struct accept_scratch *s)
{
    free(s->dist.id);
    free(s->dist.prob);
    free(s->dist.work);
    free(s->kernel);
    free(s->node);
    free(s->q);
    *s = (struct accept_scratch){0};
}

static int count_q(const struct tree *t)
{
    int n = 0;
    for (int k = 0; k < t->n; k++)
        n += t->nodes[k].q != NULL;
    return n;
}

/* The tree as arrays in the scratch. */
static int lay_out(const struct accept_args *a, struct trees *out)
{
    struct accept_scratch *s = a->scratch;
    TRY(reserve(s, a->tree->n, count_q(a->tree), a->vocab));
    const size_t cap = (size_t)s->cap_nodes, vocab = (size_t)a->vocab;
    *out = (struct trees){.slots = 1,
                          .max_nodes = a->tree->n,
                          .max_depth = a->tree->max_depth,
                          .token = s->node,
                          .parent = s->node + cap,
                          .depth = s->node + 2 * cap,
                          .q_row = s->node + 3 * cap,
                          .q = s->q};
    int n_q = 0;
    for (int k = 0; k < a->tree->n; k++) {
        const struct tree_node *node = &a->tree->nodes[k];
        out->token[k] = node->token;
        out->parent[k] = node->parent;
        out->depth[k] = node->depth;
        out->q_row[k] = node->q ? n_q++ : -1;
        if (node->q)
            memcpy(s->q + (size_t)out->q_row[k] * vocab, node->q, vocab * sizeof *s->q);
    }
    return 0;
}

static int judge(const struct accept_args *a, enum accept_kind kind, struct accepted *out)
{
    struct trees trees;
    TRY(lay_out(a, &trees));
    int n = a->tree->n, first_row = 0;
    const struct seq_state seq = {.live = 1, .n = a->position, .request = a->request};
    trees.n = &n;
    accept_ref(&(struct accept){.kind = kind,
                                .sampling = *a->sampling,
                                .seq = &seq,
                                .trees = &trees,
                                .first_row = &first_row,
                                .logits = a->logits,
                                .stats = a->stats,
                                .vocab = a->vocab,
                                .accepted = &out->n,
                                .path = out->path,
                                .bonus = &out->bonus,
                                .scratch = a->scratch->kernel});
    if (out->bonus < 0) {
        const int row = out->n ? 1 + out->path[out->n - 1] : 0;
        FAIL(ERR_DEVICE, "target's logits for position %d: expected finite numbers, their log sum exp is %g",
             a->position + out->n, (double)a->stats[row].lse);
    }
    return 0;
}

static int accept_greedy(const struct accept_args *a, struct accepted *out)
{
    return judge(a, ACCEPT_GREEDY, out);
}

static int accept_coupled(const struct accept_args *a, struct accepted *out)
{
    return judge(a, ACCEPT_COUPLED, out);
}

static int accept_rejection(const struct accept_args *a, struct accepted *out)
{
    return judge(a, ACCEPT_REJECTION, out);
}

static int accept_relaxed(const struct accept_args *a, struct accepted *out)
{
    return judge(a, ACCEPT_RELAXED, out);
}

const struct accept_rule accept_rules[] = {
    {"greedy", "the target's most probable token; equals plain greedy decoding", 0, accept_greedy,
     ACCEPT_GREEDY},
    {"coupled", "samples with noise keyed by position; equals plain sampling with the same seed", 0,
     accept_coupled, ACCEPT_COUPLED},
    {"rejection", "speculative sampling: distributed as the target, but not equal to plain sampling", 0,
     accept_rejection, ACCEPT_REJECTION},
    {"relaxed", "LOSSY: also accepts tokens close to the most probable one", 1, accept_relaxed,
     ACCEPT_RELAXED},
    {.name = NULL},
};

const struct accept_rule *accept_rule_find(const char *name)
{
    for (const struct accept_rule *r = accept_rules; r->name; r++)
        if (strcmp(r->name, name) == 0)
            return r;
    return NULL;
}
