/* accept: every rule walks the tree the same way, from the root's row downwards, and differs in one choice a
 * row: to which child the text goes on, or else which token the target adds. Greedy and relaxed cost O(1) to
 * O(vocab) a row, coupled and rejection O(vocab), for rows on the accepted path only. */
#include "spec/accept.h"
#include "engine/err.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

int accept_scratch_init(struct accept_scratch *s, int vocab)
{
    size_t n = (size_t)vocab;
    *s = (struct accept_scratch){.dist = {.id = calloc(n, sizeof(int)),
                                          .prob = calloc(n, sizeof(float)),
                                          .work = calloc(n, sizeof(float))},
                                 .left = calloc(n, sizeof(float))};
    if (s->dist.id && s->dist.prob && s->dist.work && s->left)
        return 0;
    accept_scratch_deinit(s);
    FAIL(ERR_MEMORY, "accept: out of memory for distributions over %d tokens", vocab);
}

void accept_scratch_deinit(struct accept_scratch *s)
{
    free(s->dist.id);
    free(s->dist.prob);
    free(s->dist.work);
    free(s->left);
    *s = (struct accept_scratch){0};
}

/* The child of `node` that continues the text; -1: the text ends with *token, which the target adds.
 * `position` is the one that this choice decides. */
typedef int (*choose_fn)(const struct accept_args *a, int node, int position, int *token);

static int walk(const struct accept_args *a, choose_fn choose, struct accepted *out)
{
    int node = TREE_ROOT, n = 0, bonus = -1;
    for (;;) {
        int position = a->position + n;
        float lse = a->stats[1 + node].lse;
        if (!isfinite(lse))
            FAIL(ERR_DEVICE,
                 "target's logits for position %d: expected finite numbers, their log sum exp is %g",
                 position, (double)lse);
        node = choose(a, node, position, &bonus);
        if (node < 0)
            break;
        out->path[n++] = node;
    }
    out->n = n;
    out->bonus = bonus;
    return 0;
}

static const float *row_of(const struct accept_args *a, int node)
{
    return a->logits + (size_t)(1 + node) * (size_t)a->vocab;
}

static struct sample_key key_at(const struct accept_args *a, int position)
{
    return (struct sample_key){a->sampling->seed, a->request, (uint32_t)position};
}

/* p of the node's row, with all sampling transforms, into the scratch. */
static struct sample_dist *target_dist(const struct accept_args *a, int node)
{
    const struct sampling *s = a->sampling;
    struct sample_filter f = {s->temperature, s->top_k, s->top_p, s->min_p};
    sample_dist_from_logits(&a->scratch->dist, row_of(a, node), a->vocab, a->stats[1 + node].max, &f);
    return &a->scratch->dist;
}

static int choose_greedy(const struct accept_args *a, int node, int position, int *token)
{
    (void)position;
    *token = a->stats[1 + node].argmax;
    return tree_child(a->tree, node, *token);
}

static int choose_coupled(const struct accept_args *a, int node, int position, int *token)
{
    struct sample_key key = key_at(a, position);
    *token = sample_gumbel(target_dist(a, node), &key);
    return tree_child(a->tree, node, *token);
}

static int choose_relaxed(const struct accept_args *a, int node, int position, int *token)
{
    (void)position;
    const struct logit_stats *st = &a->stats[1 + node];
    const float *row = row_of(a, node);
    double least = exp((double)st->max - st->lse) - a->sampling->relaxed_delta;
    int best = -1, best_rank = a->sampling->relaxed_top_k + 1;
    for (int c = node + 1; c < a->tree->n; c++) {
        int t = a->tree->nodes[c].token;
        if (a->tree->nodes[c].parent != node)
            continue;
        int rank = logits_rank(row, a->vocab, t);
        if (rank < best_rank && exp((double)row[t] - st->lse) >= least) {
            best = c;
            best_rank = rank;
        }
    }
    *token = st->argmax;
    return best;
}

/* What the rejections at one row have left of p: weight[i] for id[i], not normalised. */
struct leftover {
    const struct sample_dist *p;
    float *weight;
    double mass; /* sum of weight */
};

static double sum_of(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

/* Index of token v among the kept ids, -1: filtered out. */
static int kept_index(const struct sample_dist *p, int v)
{
    int lo = 0, hi = p->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (p->id[mid] < v)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < p->n && p->id[lo] == v ? lo : -1;
}

/* Mass of the child's q without the siblings before it, which could not be drawn again. */
static double q_mass(const struct accept_args *a, int child)
{
    const struct tree_node *nodes = a->tree->nodes, *c = &nodes[child];
    double mass = sum_of(c->q, a->vocab);
    for (int i = c->parent + 1; i < child; i++)
        if (nodes[i].parent == c->parent)
            mass -= c->q[nodes[i].token];
    return mass;
}

/* weight = max(0, p - q), both normalised. Siblings before this one have weight 0 already, so that q may hold
 * them. */
static void subtract_q(struct leftover *left, const float *q, double mass_q)
{
    for (int i = 0; i < left->p->n; i++) {
        double w = left->weight[i] / left->mass - q[left->p->id[i]] / mass_q;
        left->weight[i] = w > 0 ? (float)w : 0.0f;
    }
}

/* One test of a child, with uniform u. Rejected: its share leaves `left`. */
static int child_accepted(const struct accept_args *a, struct leftover *left, int child, float u)
{
    const struct tree_node *c = &a->tree->nodes[child];
    int at = kept_index(left->p, c->token);
    double p = at >= 0 ? left->weight[at] / left->mass : 0;
    double mass_q = c->q ? q_mass(a, child) : 1;
    double q = c->q ? c->q[c->token] / mass_q : 1;
    if (u * q < p)
        return 1;
    if (c->q)
        subtract_q(left, c->q, mass_q);
    else if (at >= 0)
        left->weight[at] = 0;
    left->mass = sum_of(left->weight, left->p->n);
    return left->mass <= 0; /* p is q up to rounding: nothing else could be drawn */
}

static int choose_rejection(const struct accept_args *a, int node, int position, int *token)
{
    const struct sampling *s = a->sampling;
    struct sample_key key = key_at(a, position);
    struct leftover left = {.p = target_dist(a, node), .weight = a->scratch->left};
    memcpy(left.weight, left.p->prob, (size_t)left.p->n * sizeof *left.weight);
    left.mass = sum_of(left.weight, left.p->n);
    uint32_t sibling = 0;
    for (int c = node + 1; c < a->tree->n; c++) {
        if (a->tree->nodes[c].parent != node)
            continue;
        uint32_t bits = philox(s->seed, a->request, key.position, PHILOX_ACCEPT, sibling++).v[0];
        if (child_accepted(a, &left, c, philox_uniform(bits)))
            return c;
    }
    *token = left.p->id[sample_categorical(left.weight, left.p->n, &key, PHILOX_TOKEN, 0)];
    return -1;
}

static int accept_greedy(const struct accept_args *a, struct accepted *out)
{
    return walk(a, choose_greedy, out);
}

static int accept_coupled(const struct accept_args *a, struct accepted *out)
{
    return walk(a, a->sampling->temperature > 0 ? choose_coupled : choose_greedy, out);
}

static int accept_rejection(const struct accept_args *a, struct accepted *out)
{
    return walk(a, a->sampling->temperature > 0 ? choose_rejection : choose_greedy, out);
}

static int accept_relaxed(const struct accept_args *a, struct accepted *out)
{
    return walk(a, choose_relaxed, out);
}

const struct accept_rule accept_rules[] = {
    {"greedy", "the target's most probable token; equals plain greedy decoding", 0, accept_greedy},
    {"coupled", "samples with noise keyed by position; equals plain sampling with the same seed", 0,
     accept_coupled},
    {"rejection", "speculative sampling: distributed as the target, but not equal to plain sampling", 0,
     accept_rejection},
    {"relaxed", "LOSSY: also accepts tokens close to the most probable one", 1, accept_relaxed},
    {0},
};

const struct accept_rule *accept_rule_find(const char *name)
{
    for (const struct accept_rule *r = accept_rules; r->name; r++)
        if (strcmp(r->name, name) == 0)
            return r;
    return NULL;
}
