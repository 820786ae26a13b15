/* eagle3_tree: choosing by value (the most probable, the best paths) is for children that were found without
 * randomness. Children that were drawn keep the order of drawing and are kept by their place alone: a choice
 * that looks at what was drawn would leave them distributed otherwise than q says. */
#include "drafts/eagle3_tree.h"
#include "engine/err.h"
#include "kernels/grow.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int eagle3_width(enum eagle3_shape shape, int top_k, int max_nodes)
{
    const int some = max_nodes > 0 ? max_nodes : 1;
    return shape == EAGLE3_CHAIN ? 1 : shape == EAGLE3_DYNAMIC ? top_k : some;
}

int eagle3_choice_init(struct eagle3_choice *c, int max_nodes)
{
    const size_t vocab = (size_t)c->target_vocab;
    const int deeper = c->max_depth > 1 ? c->max_depth - 1 : 0;
    c->max_frontier = eagle3_width(c->shape, c->top_k, max_nodes);
    c->max_candidates = grow_candidates(c->top_k, c->max_frontier, c->max_depth);
    c->max_run = 1 + deeper * c->max_frontier;
    if (c->draw == EAGLE3_BEST)
        return 0;
    c->wide = malloc(4 * vocab * sizeof *c->wide);
    c->id = malloc(vocab * sizeof *c->id);
    if (!c->wide || !c->id)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory for draws among %d ids", c->target_vocab);
    return 0;
}

void eagle3_choice_deinit(struct eagle3_choice *c)
{
    free(c->wide);
    free(c->id);
    *c = (struct eagle3_choice){0};
}

int eagle3_tree_init(struct eagle3_tree *t, const struct eagle3_choice *c)
{
    const size_t n = (size_t)c->max_candidates;
    *t = (struct eagle3_tree){.candidate = calloc(n, sizeof *t->candidate),
                              .frontier = calloc(n, sizeof *t->frontier),
                              .order = calloc(n, sizeof *t->order)};
    if (c->draw == EAGLE3_FREE)
        t->q = calloc((size_t)c->max_run * (size_t)c->target_vocab, sizeof *t->q);
    if (!t->candidate || !t->frontier || !t->order || (c->draw == EAGLE3_FREE && !t->q))
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory for a tree of %d candidates", c->max_candidates);
    return 0;
}

void eagle3_tree_deinit(struct eagle3_tree *t)
{
    free(t->candidate);
    free(t->frontier);
    free(t->order);
    free(t->q);
    *t = (struct eagle3_tree){0};
}

void eagle3_tree_clear(struct eagle3_tree *t)
{
    t->n = t->n_frontier = t->n_run = 0;
}

static void record(struct eagle3_tree *t, const struct eagle3_choice *c, int parent, int rank, int token,
                   float log_q, const float *q)
{
    const struct eagle3_candidate *p = parent < 0 ? NULL : &t->candidate[parent];
    if (t->n == c->max_candidates)
        return;
    t->candidate[t->n++] = (struct eagle3_candidate){.token = token,
                                                     .parent = parent,
                                                     .depth = p ? p->depth + 1 : 1,
                                                     .weight = (p ? p->weight : 1) * rank,
                                                     .log_q = log_q,
                                                     .score = (p ? p->score : 0) + log_q,
                                                     .q = q};
}

static void extend_best(struct eagle3_tree *t, const struct eagle3_choice *c, int parent, int k,
                        const float *logits)
{
    int id[TOP_MAX] = {0};
    float log_q[TOP_MAX];
    const struct top best = {
        .logits = logits, .map = c->d2t, .id = id, .log_p = log_q, .rows = 1, .vocab = c->vocab, .k = k};
    top_ref(&best);
    for (int r = 0; r < k; r++)
        record(t, c, parent, r + 1, id[r], log_q[r], NULL);
}

/* The draft's distribution over the target's ids, under the target's temperature and filters. */
static struct sample_dist distribution(const struct eagle3_choice *c, const float *logits)
{
    const size_t vocab = (size_t)c->target_vocab;
    struct sample_dist d = {.id = c->id, .prob = c->wide + vocab, .work = c->wide + 3 * vocab};
    float most = -INFINITY;
    for (size_t v = 0; v < vocab; v++)
        c->wide[v] = -INFINITY;
    for (int i = 0; i < c->vocab; i++) {
        c->wide[c->d2t[i]] = logits[i];
        most = logits[i] > most ? logits[i] : most;
    }
    sample_dist_from_logits(&d, c->wide, c->target_vocab, most, &c->filter);
    return d;
}

/* The place in `left` of the next draw without replacement; -1: nothing is left. */
static int draw(const struct eagle3_choice *c, const struct sample_dist *left, const struct sample_key *key,
                uint32_t index)
{
    int at = 0;
    if (c->draw == EAGLE3_FREE)
        at = sample_categorical(left->prob, left->n, key, PHILOX_DRAFT, index);
    else
        for (const int id = sample_gumbel(left, key); left->id[at] != id;)
            at++;
    return left->prob[at] > 0 ? at : -1;
}

static void extend_drawn(struct eagle3_tree *t, const struct eagle3_choice *c, int parent, int k,
                         const float *logits, const struct sample_key *key)
{
    const size_t vocab = (size_t)c->target_vocab;
    const struct sample_dist p = distribution(c, logits);
    struct sample_dist left = p;
    float *q = t->q ? t->q + (size_t)t->n_run * vocab : NULL;
    left.prob = c->wide + 2 * vocab;
    memcpy(left.prob, p.prob, (size_t)p.n * sizeof *p.prob);
    if (q) {
        memset(q, 0, vocab * sizeof *q);
        for (int i = 0; i < p.n; i++)
            q[p.id[i]] = p.prob[i];
    }
    for (int r = 0; r < k; r++) {
        const int at = draw(c, &left, key, (uint32_t)(t->n_run * TOP_MAX + r));
        if (at < 0)
            break;
        left.prob[at] = 0;
        record(t, c, parent, r + 1, p.id[at], (float)log((double)p.prob[at]), q);
    }
}

void eagle3_tree_extend(struct eagle3_tree *t, const struct eagle3_choice *c, int parent, const float *logits,
                        const struct sample_key *key)
{
    const int weight = parent < 0 ? 1 : t->candidate[parent].weight;
    const int k = c->shape == EAGLE3_STATIC ? c->top_k / weight : c->top_k;
    if (k > 0 && c->draw == EAGLE3_BEST)
        extend_best(t, c, parent, k, logits);
    else if (k > 0)
        extend_drawn(t, c, parent, k, logits, key);
    t->n_run++;
}

/* Of candidates [from, n) the `most` with the best scores into order, best first; equals: the earlier.
 * Returns how many. */
static int rank_candidates(struct eagle3_tree *t, int from, int most)
{
    int n = 0;
    for (int i = from; i < t->n; i++) {
        int at = n;
        for (; at > 0 && t->candidate[i].score > t->candidate[t->order[at - 1]].score; at--)
            if (at < most)
                t->order[at] = t->order[at - 1];
        if (at < most)
            t->order[at] = i;
        n += n < most;
    }
    return n;
}

void eagle3_tree_advance(struct eagle3_tree *t, const struct eagle3_choice *c, int from)
{
    const int n = t->n - from;
    t->n_frontier = n < c->max_frontier ? n : c->max_frontier;
    for (int i = 0; i < t->n_frontier; i++)
        t->frontier[i] = from + i;
    if (c->shape == EAGLE3_DYNAMIC) {
        t->n_frontier = rank_candidates(t, from, c->max_frontier);
        memcpy(t->frontier, t->order, (size_t)t->n_frontier * sizeof *t->frontier);
    }
}

/* Which candidates become nodes: the best, or the first. A parent's score is at least its child's, and it
 * comes first among equals, so every kept node's parent is kept. */
static void keep(struct eagle3_tree *t, const struct eagle3_choice *c, int most)
{
    for (int i = 0; i < t->n; i++)
        t->candidate[i].kept = c->shape != EAGLE3_DYNAMIC && i < most;
    if (c->shape != EAGLE3_DYNAMIC)
        return;
    const int n = rank_candidates(t, 0, most);
    for (int i = 0; i < n; i++)
        t->candidate[t->order[i]].kept = 1;
}

void eagle3_tree_emit(struct eagle3_tree *t, const struct eagle3_choice *c, struct tree *out)
{
    keep(t, c, out->max_nodes);
    for (int i = 0; i < t->n; i++) {
        struct eagle3_candidate *n = &t->candidate[i];
        if (n->kept)
            n->node = tree_add(out, n->parent < 0 ? TREE_ROOT : t->candidate[n->parent].node, n->token,
                               n->log_q, n->q);
    }
}
