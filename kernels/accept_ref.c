/* accept: every rule walks the tree the same way, from the root's row downwards, and differs in one choice a
 * row: to which child the text goes on, or else which token the target adds. Greedy and relaxed cost O(1) to
 * O(vocab) a row, coupled and rejection O(vocab), for rows on the accepted path only. */
#include "kernels/accept.h"
#include <math.h>

enum { ROOT = -1 };

/* One slot's tree under judgement; arrays point into those of all slots. */
struct judge {
    const struct accept *a;
    const int *token, *parent, *q_row;
    const struct logit_stats *stats; /* of the root's row, nodes behind it, as logits */
    const float *logits;
    uint32_t request;
    int n;
    struct sample_dist dist; /* in the scratch */
    float *left;
};

/* The child of `node` that continues the text; -1: the text ends with *token, which the target adds.
 * `position` is the one that this choice decides. */
typedef int (*choose_fn)(const struct judge *j, int node, int position, int *token);

size_t accept_bytes(int vocab)
{
    return (size_t)vocab * (sizeof(int) + 3 * sizeof(float));
}

static const float *row_of(const struct judge *j, int node)
{
    return j->logits + (size_t)(1 + node) * (size_t)j->a->vocab;
}

static struct sample_key key_at(const struct judge *j, int position)
{
    return (struct sample_key){j->a->sampling.seed, j->request, (uint32_t)position};
}

static int child_of(const struct judge *j, int node, int token)
{
    for (int c = node + 1; c < j->n; c++)
        if (j->parent[c] == node && j->token[c] == token)
            return c;
    return -1;
}

/* p of the node's row, with all sampling transforms, into the scratch. */
static struct sample_dist target_dist(const struct judge *j, int node)
{
    const struct sampling *s = &j->a->sampling;
    const struct sample_filter f = {s->temperature, s->top_k, s->top_p, s->min_p};
    struct sample_dist d = j->dist;
    sample_dist_from_logits(&d, row_of(j, node), j->a->vocab, j->stats[1 + node].max, &f);
    return d;
}

static int choose_greedy(const struct judge *j, int node, int position, int *token)
{
    (void)position;
    *token = j->stats[1 + node].argmax;
    return child_of(j, node, *token);
}

static int choose_coupled(const struct judge *j, int node, int position, int *token)
{
    const struct sample_key key = key_at(j, position);
    const struct sample_dist p = target_dist(j, node);
    *token = sample_gumbel(&p, &key);
    return child_of(j, node, *token);
}

static int choose_relaxed(const struct judge *j, int node, int position, int *token)
{
    (void)position;
    const struct logit_stats *st = &j->stats[1 + node];
    const float *row = row_of(j, node);
    const double least = exp((double)st->max - st->lse) - j->a->sampling.relaxed_delta;
    int best = -1, best_rank = j->a->sampling.relaxed_top_k + 1;
    for (int c = node + 1; c < j->n; c++) {
        const int t = j->token[c];
        if (j->parent[c] != node)
            continue;
        const int rank = logits_rank(row, j->a->vocab, t);
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
        const int mid = lo + (hi - lo) / 2;
        if (p->id[mid] < v)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < p->n && p->id[lo] == v ? lo : -1;
}

/* The distribution the node was drawn from, NULL: chosen without randomness. */
static const float *q_of(const struct judge *j, int node)
{
    return j->q_row[node] < 0 ? NULL : j->a->trees->q + (size_t)j->q_row[node] * (size_t)j->a->vocab;
}

/* Mass of the child's q without the siblings before it, which could not be drawn again. */
static double q_mass(const struct judge *j, int child)
{
    const float *q = q_of(j, child);
    double mass = sum_of(q, j->a->vocab);
    for (int i = j->parent[child] + 1; i < child; i++)
        if (j->parent[i] == j->parent[child])
            mass -= q[j->token[i]];
    return mass;
}

/* weight = max(0, p - q), both normalised. Siblings before this one have weight 0 already, so that q may hold
 * them. */
static void subtract_q(struct leftover *left, const float *q, double mass_q)
{
    for (int i = 0; i < left->p->n; i++) {
        const double w = left->weight[i] / left->mass - q[left->p->id[i]] / mass_q;
        left->weight[i] = w > 0 ? (float)w : 0.0f;
    }
}

/* One test of a child, with uniform u. Rejected: its share leaves `left`. */
static int child_accepted(const struct judge *j, struct leftover *left, int child, float u)
{
    const float *row_q = q_of(j, child);
    const int token = j->token[child], at = kept_index(left->p, token);
    const double p = at >= 0 ? left->weight[at] / left->mass : 0;
    const double mass_q = row_q ? q_mass(j, child) : 1;
    const double q = row_q ? row_q[token] / mass_q : 1;
    if (u * q < p)
        return 1;
    if (row_q)
        subtract_q(left, row_q, mass_q);
    else if (at >= 0)
        left->weight[at] = 0;
    left->mass = sum_of(left->weight, left->p->n);
    return left->mass <= 0; /* p is q up to rounding: nothing else could be drawn */
}

static int choose_rejection(const struct judge *j, int node, int position, int *token)
{
    const struct sample_key key = key_at(j, position);
    const struct sample_dist p = target_dist(j, node);
    struct leftover left = {.p = &p, .weight = j->left};
    memcpy(left.weight, p.prob, (size_t)p.n * sizeof *left.weight);
    left.mass = sum_of(left.weight, p.n);
    uint32_t sibling = 0;
    for (int c = node + 1; c < j->n; c++) {
        if (j->parent[c] != node)
            continue;
        const uint32_t bits = philox(key.seed, key.request, key.position, PHILOX_ACCEPT, sibling++).v[0];
        if (child_accepted(j, &left, c, philox_uniform(bits)))
            return c;
    }
    *token = p.id[sample_categorical(left.weight, p.n, &key, PHILOX_TOKEN, 0)];
    return -1;
}

static choose_fn choose_of(const struct accept *a)
{
    if (a->kind == ACCEPT_RELAXED)
        return choose_relaxed;
    if (a->kind == ACCEPT_GREEDY || !(a->sampling.temperature > 0))
        return choose_greedy;
    return a->kind == ACCEPT_COUPLED ? choose_coupled : choose_rejection;
}

static void walk(const struct judge *j, int slot)
{
    const struct accept *a = j->a;
    const choose_fn choose = choose_of(a);
    int *path = a->path + (size_t)slot * (size_t)a->trees->max_depth;
    int node = ROOT, n = 0, token = 0;
    a->bonus[slot] = -1;
    while (isfinite(j->stats[1 + node].lse)) {
        node = choose(j, node, a->seq[slot].n + n, &token);
        if (node < 0) {
            a->bonus[slot] = token;
            break;
        }
        path[n++] = node;
    }
    a->accepted[slot] = n;
}

void accept_ref(const struct accept *a)
{
    const struct trees *t = a->trees;
    const size_t vocab = (size_t)a->vocab;
    float *f = a->scratch;
    for (int slot = 0; slot < t->slots; slot++) {
        const size_t first = (size_t)slot * (size_t)t->max_nodes, row = (size_t)a->first_row[slot];
        a->accepted[slot] = 0;
        if (a->first_row[slot] < 0)
            continue;
        const struct judge j = {.a = a,
                                .token = t->token + first,
                                .parent = t->parent + first,
                                .q_row = t->q_row + first,
                                .stats = a->stats + row,
                                .logits = a->logits + row * vocab,
                                .request = a->seq[slot].request,
                                .n = t->n[slot],
                                .dist = {.prob = f, .work = f + vocab, .id = (int *)(f + 3 * vocab)},
                                .left = f + 2 * vocab};
        walk(&j, slot);
    }
}
