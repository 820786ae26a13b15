/* n-gram drafts come from the very function that decoding uses, so the rule cannot be understood in two ways
 * here; an independent script holds both to it (tests/golden/ngram_acceptance.py). */
#include "experiments/whatif_replay.h"
#include <assert.h>

/* Nodes of the tree that lie on the known text, from the root down. */
static int accepted_of(const struct trees *t, const struct whatif_text *text, int n)
{
    int node = -1, depth = 0;
    for (int k = 0; k < t->n[0] && n + depth < text->n; k++)
        if (t->parent[k] == node && t->token[k] == text->tokens[n + depth]) {
            node = k;
            depth++;
        }
    return depth;
}

static void ngram_at(const struct whatif_draft *d, const struct whatif_text *text, int n,
                     struct whatif_step *out)
{
    int nodes, token[WHATIF_NODES], parent[WHATIF_NODES], depth[WHATIF_NODES], q_row[WHATIF_NODES];
    float log_q[WHATIF_NODES];
    const struct trees trees = {.slots = 1,
                                .max_nodes = d->max_nodes,
                                .max_depth = d->max_depth,
                                .n = &nodes,
                                .token = token,
                                .parent = parent,
                                .depth = depth,
                                .log_q = log_q,
                                .q_row = q_row};
    const struct seq_state seq = {
        .live = 1, .n = n, .n_prompt = text->n_prompt, .end = text->end, .context_end = text->end};
    struct ngram search = d->search;
    search.seq = &seq;
    search.text = text->tokens;
    search.cap = text->n;
    search.trees = &trees;
    ngram_ref(&search);
    out->rows = 1 + nodes;
    out->accepted = accepted_of(&trees, text, n);
    out->exact = 1;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* The step of the trace that decided token n; steps are in order and cover the answer. */
static const struct trace_step *step_over(const struct trace_step *steps, int n_steps, int n)
{
    int lo = 0, hi = n_steps - 1;
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (steps[mid].position <= n)
            lo = mid;
        else
            hi = mid - 1;
    }
    return &steps[lo];
}

static void chain_at(const struct whatif_draft *d, const struct whatif_text *text, const struct trace_step *s,
                     int n, struct whatif_step *out)
{
    int passed = n - s->position, room = text->end - n - 1;
    int depth = least(least(d->max_depth, d->max_nodes), room > 0 ? room : 0);
    int right = s->accepted > passed ? s->accepted - passed : 0;
    out->exact = passed == 0;
    out->rows = 1 + (passed == 0 ? least(s->proposed, depth) : depth);
    out->accepted = least(least(right, out->rows - 1), text->n - n);
}

void whatif_step_at(const struct whatif_draft *d, const struct whatif_text *text,
                    const struct trace_step *steps, int n_steps, int n, struct whatif_step *out)
{
    assert(d->max_depth <= WHATIF_DEPTH && d->max_nodes <= WHATIF_NODES && n >= 1);
    *out = (struct whatif_step){.n = n, .rows = 1, .exact = 1};
    if (d->kind == WHATIF_NGRAM)
        ngram_at(d, text, n, out);
    else if (d->kind == WHATIF_CHAIN && n_steps > 0)
        chain_at(d, text, step_over(steps, n_steps, n), n, out);
    out->n = n;
}

int whatif_replay(const struct whatif_draft *d, const struct whatif_text *text,
                  const struct trace_step *steps, int n_steps, struct whatif_step *out)
{
    int k = 0;
    for (int n = text->n_prompt; n < text->n; k++) {
        whatif_step_at(d, text, steps, n_steps, n, &out[k]);
        n += out[k].accepted + 1;
    }
    return k;
}
