/* test_cuda_accept: acceptance and node statistics on the GPU, through the backend, against the CPU's on the
 * same numbers.
 *
 * A choice may differ from the reference's only where a setting within a millionth (temperature, top-p,
 * min-p) makes the reference choose the same: weights are the same bits on both, so what is left is the order
 * of double sums and the rounding of log, which no such setting is finer than. Differences are counted and
 * bounded.
 *
 * Statistical: N = 20000 texts, Pearson's chi-square over the first token against the quantile that a correct
 * rule passes with probability 1e-6, by Wilson and Hilferty: k (1 - 2 / 9k + z sqrt(2 / 9k))^3 for k degrees
 * of freedom, z = 4.753. Seeds are fixed. */
#include "engine/backend.h"
#include "engine/err.h"
#include "tests/cuda_suite.h"
#include "tests/expect.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLOTS = 4, NODES = 12, DEPTH = 5, ROWS = SLOTS * (1 + NODES), SPECIAL = 6, SIBLINGS = 3 };

static struct backend be;

/* Everything of an accept call and of node_stats; one on the host, one on the device. */
struct side {
    struct trees trees;
    struct seq_state *seq;
    int *first_row, *accepted, *path, *bonus, *rank;
    float *logits, *log_p, *entropy, *gap, *path_log_p;
    struct logit_stats *stats;
    void *scratch;
};

struct bench {
    int vocab, rows;
    struct side host, device;
};

static const int vocabs[] = {7, 100, 49152, 128256};
enum { N_VOCABS = sizeof vocabs / sizeof *vocabs };

static void ok(int rc)
{
    if (rc)
        ck_abort_msg("%s", err_text());
}

static float uniform(uint32_t stream, uint32_t a, uint32_t b)
{
    return philox_uniform(philox(5, stream, a, 0, b).v[0]);
}

/* --- memory -----------------------------------------------------------------------------------------------
 */

/* Every array of a side with its bytes, in one order for all that walks over them. */
struct array {
    void **p;
    size_t bytes;
};
enum { ARRAYS = 21 };

static void arrays_of(struct side *s, int vocab, int slots, int nodes, int depth, int rows,
                      struct array out[ARRAYS])
{
    const size_t n = (size_t)slots, of_nodes = n * (size_t)nodes, row = (size_t)vocab * sizeof(float);
    const struct array all[ARRAYS] = {{(void **)&s->trees.n, n * sizeof(int)},
                                      {(void **)&s->trees.token, of_nodes * sizeof(int)},
                                      {(void **)&s->trees.parent, of_nodes * sizeof(int)},
                                      {(void **)&s->trees.depth, of_nodes * sizeof(int)},
                                      {(void **)&s->trees.log_q, of_nodes * sizeof(float)},
                                      {(void **)&s->trees.q_row, of_nodes * sizeof(int)},
                                      {(void **)&s->trees.q, of_nodes * row},
                                      {(void **)&s->seq, n * sizeof *s->seq},
                                      {(void **)&s->first_row, n * sizeof(int)},
                                      {(void **)&s->logits, (size_t)rows * row},
                                      {(void **)&s->stats, (size_t)rows * sizeof *s->stats},
                                      {(void **)&s->accepted, n * sizeof(int)},
                                      {(void **)&s->path, n * (size_t)depth * sizeof(int)},
                                      {(void **)&s->bonus, n * sizeof(int)},
                                      {(void **)&s->rank, of_nodes * sizeof(int)},
                                      {(void **)&s->log_p, of_nodes * sizeof(float)},
                                      {(void **)&s->entropy, of_nodes * sizeof(float)},
                                      {(void **)&s->gap, of_nodes * sizeof(float)},
                                      {(void **)&s->path_log_p, n * (1 + (size_t)depth) * sizeof(float)},
                                      {(void **)&s->scratch, 0}};
    memcpy(out, all, sizeof all);
}

enum { N_INPUTS = 11, N_SIDE = 19 }; /* the inputs come first, the scratch last */

static void open_bench(struct bench *b, int vocab, int slots, int nodes, int depth)
{
    struct array host[ARRAYS], device[ARRAYS];
    *b = (struct bench){.vocab = vocab, .rows = slots * (1 + nodes)};
    b->host.trees = b->device.trees = (struct trees){.slots = slots, .max_nodes = nodes, .max_depth = depth};
    arrays_of(&b->host, vocab, slots, nodes, depth, b->rows, host);
    arrays_of(&b->device, vocab, slots, nodes, depth, b->rows, device);
    for (int i = 0; i < N_SIDE; i++) {
        *host[i].p = calloc(1, host[i].bytes + 1);
        ck_assert_ptr_nonnull(*host[i].p);
        ok(be.ops->alloc(&be, device[i].bytes + 1, device[i].p));
    }
    b->host.scratch = malloc(accept_bytes(vocab));
    ok(be.ops->alloc(&be, be.ops->accept_bytes(&be, slots, nodes, vocab), &b->device.scratch));
}

static void close_bench(struct bench *b)
{
    struct array host[ARRAYS], device[ARRAYS];
    arrays_of(&b->host, b->vocab, 0, 0, 0, 0, host);
    arrays_of(&b->device, b->vocab, 0, 0, 0, 0, device);
    for (int i = 0; i <= N_SIDE; i++) {
        free(*host[i].p);
        be.ops->release(&be, *device[i].p);
    }
}

/* Inputs to the device, where the statistics are computed; the host gets them. */
static void upload(struct bench *b)
{
    const struct trees *t = &b->host.trees;
    struct array host[ARRAYS], device[ARRAYS];
    arrays_of(&b->host, b->vocab, t->slots, t->max_nodes, t->max_depth, b->rows, host);
    arrays_of(&b->device, b->vocab, t->slots, t->max_nodes, t->max_depth, b->rows, device);
    for (int i = 0; i < N_INPUTS; i++)
        if (host[i].bytes)
            ok(be.ops->upload(&be, *device[i].p, *host[i].p, host[i].bytes));
    ok(be.ops->logits(&be, &(struct logits){.logits = b->device.logits,
                                            .out = b->device.stats,
                                            .rows = b->rows,
                                            .vocab = b->vocab,
                                            .threads = 1,
                                            .with_entropy = 1}));
    ok(be.ops->download(&be, b->host.stats, b->device.stats, (size_t)b->rows * sizeof *b->host.stats));
    ok(be.ops->sync(&be));
}

/* --- cases ------------------------------------------------------------------------------------------------
 */

static int special(const struct bench *b, int row, int k)
{
    return (int)(uniform(40, (uint32_t)row, (uint32_t)k) * (float)b->vocab);
}

/* A few ids hold most of a row's probability; every third row is whole numbers, full of ties, one of them
 * at the top. */
static void fill_rows(struct bench *b)
{
    const float lift = logf((float)b->vocab);
    for (int r = 0; r < b->rows; r++) {
        float *row = b->host.logits + (size_t)r * (size_t)b->vocab;
        for (int v = 0; v < b->vocab; v++)
            row[v] = 3 * (uniform((uint32_t)r, 0, (uint32_t)v) + uniform((uint32_t)r, 1, (uint32_t)v) - 1);
        for (int k = 0; k < SPECIAL; k++)
            row[special(b, r, k)] += lift * (0.8f + 0.5f * uniform(41, (uint32_t)r, (uint32_t)k));
        for (int v = 0; r % 3 == 0 && v < b->vocab; v++)
            row[v] = floorf(row[v]);
        if (r % 3 == 0)
            row[special(b, r, 0)] = row[special(b, r, 1)] = ceilf(1.5f * lift);
        if (r % 4 == 1)
            row[b->vocab / 2] = -INFINITY;
    }
}

static int count_children(const int *parent, int n, int node)
{
    int count = 0;
    for (int k = 0; k < n; k++)
        count += parent[k] == node;
    return count;
}

static int is_child(const int *parent, const int *token, int n, int node, int t)
{
    for (int k = 0; k < n; k++)
        if (parent[k] == node && token[k] == t)
            return 1;
    return 0;
}

/* q of a node: its parent's row, flatter. Siblings share the first one's. */
static void give_q(struct bench *b, int slot, int k)
{
    const struct trees *t = &b->host.trees;
    const int first = slot * t->max_nodes, parent = t->parent[first + k];
    t->q_row[first + k] = -1;
    if ((parent + slot) % 3 == 0 ||
        ((parent + slot) % 3 == 1 && count_children(t->parent + first, k, parent) == 0))
        return; /* all fixed; the first fixed */
    t->q_row[first + k] = first + k;
    for (int i = 0; i < k; i++)
        if (t->parent[first + i] == parent && t->q_row[first + i] >= 0) {
            t->q_row[first + k] = t->q_row[first + i];
            return;
        }
    const float *row = b->host.logits + (size_t)(b->host.first_row[slot] + 1 + parent) * (size_t)b->vocab;
    float *q = t->q + (size_t)(first + k) * (size_t)b->vocab;
    double sum = 0;
    for (int v = 0; v < b->vocab; v++)
        sum += q[v] = expf(0.8f * row[v]);
    for (int v = 0; v < b->vocab; v++)
        q[v] = (float)(q[v] / sum);
}

/* Id of the largest logit, of equal ones the first or the last. */
static int largest(const struct bench *b, int row, int last)
{
    const float *x = b->host.logits + (size_t)row * (size_t)b->vocab;
    int best = 0;
    for (int v = 1; v < b->vocab; v++)
        best = x[v] > x[best] || (last && x[v] == x[best]) ? v : best;
    return best;
}

static void grow_tree(struct bench *b, int slot, int n)
{
    const struct trees *t = &b->host.trees;
    const int first = slot * t->max_nodes;
    int *parent = t->parent + first, *token = t->token + first, *depth = t->depth + first;
    for (int k = 0; k < n; k++) {
        int at = (int)(uniform(50, (uint32_t)slot, (uint32_t)k) * (float)(k + 1)) - 1;
        while (at >= 0 && (depth[at] == t->max_depth || count_children(parent, k, at) == SIBLINGS))
            at--;
        if (at < 0)
            at = count_children(parent, k, -1) < SIBLINGS ? -1 : k - 1;
        const int row = b->host.first_row[slot] + 1 + at;
        int id = k == 0
                     ? largest(b, row, slot % 2)
                     : special(b, row,
                               uniform(51, (uint32_t)slot, (uint32_t)k) < 0.75f ? k % SPECIAL : SPECIAL + k);
        while (is_child(parent, token, k, at, id))
            id = (id + 1) % b->vocab;
        parent[k] = at;
        token[k] = id;
        depth[k] = at < 0 ? 1 : depth[at] + 1;
        if (depth[k] > t->max_depth)
            break;
        t->n[slot] = k + 1;
        give_q(b, slot, k);
    }
}

/* Rows of slot after slot, the last slot's first; slot 1 takes no part, slot 0 has no tree. */
static void make_case(struct bench *b, int vocab)
{
    open_bench(b, vocab, SLOTS, NODES, DEPTH);
    fill_rows(b);
    for (int s = 0; s < SLOTS; s++) {
        b->host.seq[s] = (struct seq_state){.live = 1, .n = 20 + 7 * s, .request = 100 + (uint32_t)s};
        b->host.first_row[s] = s == 1 ? -1 : (SLOTS - 1 - s) * (1 + NODES);
        if (s > 1)
            grow_tree(b, s, NODES - s % 2);
    }
    upload(b);
}

static struct accept accept_of(const struct bench *b, const struct side *s, enum accept_kind kind,
                               const struct sampling *sampling)
{
    return (struct accept){.kind = kind,
                           .sampling = *sampling,
                           .seq = s->seq,
                           .trees = &s->trees,
                           .first_row = s->first_row,
                           .logits = s->logits,
                           .stats = s->stats,
                           .vocab = b->vocab,
                           .accepted = s->accepted,
                           .path = s->path,
                           .bonus = s->bonus,
                           .scratch = s->scratch};
}

/* What the device chose, on the host. */
struct outcome {
    int accepted[SLOTS], path[SLOTS * DEPTH], bonus[SLOTS];
};

static void fetch(const struct bench *b, struct outcome *o)
{
    const int slots = b->host.trees.slots;
    memset(o, 0, sizeof *o);
    ok(be.ops->download(&be, o->accepted, b->device.accepted, (size_t)slots * sizeof(int)));
    ok(be.ops->download(&be, o->bonus, b->device.bonus, (size_t)slots * sizeof(int)));
    ok(be.ops->download(&be, o->path, b->device.path,
                        (size_t)slots * (size_t)b->host.trees.max_depth * sizeof(int)));
    ok(be.ops->sync(&be));
}

static void judge(const struct bench *b, enum accept_kind kind, const struct sampling *s, struct outcome *o)
{
    const struct accept a = accept_of(b, &b->device, kind, s);
    ok(be.ops->accept(&be, &a));
    fetch(b, o);
}

struct setting {
    enum accept_kind kind;
    struct sampling s;
};
static const struct setting settings[] = {
    {ACCEPT_GREEDY, {.temperature = 1, .top_p = 1}},
    {ACCEPT_COUPLED, {.temperature = 0, .top_p = 1}},
    {ACCEPT_COUPLED, {.temperature = 1, .top_p = 1}},
    {ACCEPT_COUPLED, {.temperature = 0.7f, .top_k = 5, .top_p = 1}},
    {ACCEPT_COUPLED, {.temperature = 1, .top_p = 0.9f}},
    {ACCEPT_COUPLED, {.temperature = 1.3f, .top_p = 1, .min_p = 0.02f}},
    {ACCEPT_COUPLED, {.temperature = 1.1f, .top_k = 40, .top_p = 0.97f, .min_p = 0.01f}},
    {ACCEPT_REJECTION, {.temperature = 0, .top_p = 1}},
    {ACCEPT_REJECTION, {.temperature = 1, .top_p = 1}},
    {ACCEPT_REJECTION, {.temperature = 0.7f, .top_k = 5, .top_p = 1}},
    {ACCEPT_REJECTION, {.temperature = 1.2f, .top_p = 0.8f}},
    {ACCEPT_REJECTION, {.temperature = 1.1f, .top_k = 1000, .top_p = 0.97f, .min_p = 0.001f}},
    {ACCEPT_RELAXED, {.relaxed_top_k = 1, .relaxed_delta = 1}},
    {ACCEPT_RELAXED, {.relaxed_top_k = 3, .relaxed_delta = 0.1f}},
    {ACCEPT_RELAXED, {.relaxed_top_k = 60, .relaxed_delta = 0.9f}},
};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

/* --- choices ----------------------------------------------------------------------------------------------
 */

/* The slot's choices as accept_ref last left them. */
static int same_choice(const struct bench *b, const struct outcome *o, int slot)
{
    const struct side *h = &b->host;
    if (o->accepted[slot] != h->accepted[slot])
        return 0;
    if (h->first_row[slot] < 0)
        return 1;
    return o->bonus[slot] == h->bonus[slot] && memcmp(o->path + slot * DEPTH, h->path + slot * DEPTH,
                                                      (size_t)h->accepted[slot] * sizeof(int)) == 0;
}

/* Some setting within a millionth gives the device's choice. */
static int near_tie(const struct bench *b, const struct setting *set, const struct outcome *o, int slot)
{
    for (int i = 0; i < 27; i++) {
        struct accept a = accept_of(b, &b->host, set->kind, &set->s);
        const float step[3] = {1 - 1e-6f, 1, 1 + 1e-6f};
        a.sampling.temperature *= step[i % 3];
        a.sampling.top_p = fminf(1, a.sampling.top_p * step[i / 3 % 3]);
        a.sampling.min_p *= step[i / 9];
        a.sampling.relaxed_delta *= step[i % 3];
        accept_ref(&a);
        if (same_choice(b, o, slot))
            return 1;
    }
    return 0;
}

/* How many slots chose otherwise than the reference at a tie. */
static int compare(const struct bench *b, const struct setting *set, int index, const struct outcome *o,
                   int *longest)
{
    const struct accept a = accept_of(b, &b->host, set->kind, &set->s);
    int n_ties = 0;
    accept_ref(&a);
    for (int slot = 0; slot < SLOTS; slot++) {
        const int want = b->host.accepted[slot], want_bonus = b->host.bonus[slot];
        *longest = want > *longest ? want : *longest;
        if (same_choice(b, o, slot))
            continue;
        EXPECT_MSG(near_tie(b, set, o, slot),
                   "vocab %d, setting %d, seed %d, slot %d: %d accepted and bonus %d, expected %d and %d",
                   b->vocab, index, (int)set->s.seed, slot, o->accepted[slot], o->bonus[slot], want,
                   want_bonus);
        n_ties++;
        accept_ref(&a);
    }
    return n_ties;
}

START_TEST(choices_are_the_references_but_for_ties)
{
    const int seeds = vocabs[_i] > 1000 ? 6 : 100;
    struct bench b;
    struct outcome o;
    int n_ties = 0, n = 0, longest[1 + ACCEPT_RELAXED] = {0};
    make_case(&b, vocabs[_i]);
    for (int i = 0; i < N_SETTINGS; i++)
        for (int seed = 1; seed <= seeds; seed++, n += SLOTS) {
            struct setting set = settings[i];
            set.s.seed = (uint64_t)seed;
            judge(&b, set.kind, &set.s, &o);
            n_ties += compare(&b, &set, i, &o, &longest[set.kind]);
        }
    for (int kind = ACCEPT_GREEDY; kind <= ACCEPT_RELAXED; kind++)
        ck_assert_msg(longest[kind] > 0, "vocab %d, rule %d: nothing was ever accepted", vocabs[_i], kind);
    printf("accept vocab %d: %d of %d choices are ties within rounding\n", vocabs[_i], n_ties, n);
    ck_assert_int_le(n_ties, 1 + n / 500);
    close_bench(&b);
}
END_TEST

/* Row by row with trees of no nodes: what plain decoding draws along the text that the tree gave. */
START_TEST(a_coupled_tree_gives_the_tokens_of_plain_decoding)
{
    struct bench b, plain;
    struct outcome o, p;
    int n_accepted = 0;
    make_case(&b, vocabs[_i]);
    plain = b;
    int *none = calloc(SLOTS, sizeof *none), *row = malloc(SLOTS * sizeof *row);
    struct seq_state *seq = malloc(SLOTS * sizeof *seq);
    void *device_none = NULL, *device_row = NULL, *device_seq = NULL;
    ok(be.ops->alloc(&be, SLOTS * sizeof *none, &device_none));
    ok(be.ops->alloc(&be, SLOTS * sizeof *row, &device_row));
    ok(be.ops->alloc(&be, SLOTS * sizeof *seq, &device_seq));
    plain.device.trees.n = device_none;
    plain.device.first_row = device_row;
    plain.device.seq = device_seq;
    for (int i = 0; i < N_SETTINGS; i++) {
        if (settings[i].kind != ACCEPT_COUPLED)
            continue;
        judge(&b, settings[i].kind, &settings[i].s, &o);
        for (int step = 0; step <= DEPTH; step++) {
            for (int s = 0; s < SLOTS; s++) {
                const int at = step ? o.path[s * DEPTH + step - 1] : -1;
                seq[s] = b.host.seq[s];
                seq[s].n += step;
                row[s] = b.host.first_row[s] < 0 || step > o.accepted[s] ? -1 : b.host.first_row[s] + 1 + at;
            }
            ok(be.ops->upload(&be, device_row, row, SLOTS * sizeof *row));
            ok(be.ops->upload(&be, device_seq, seq, SLOTS * sizeof *seq));
            judge(&plain, settings[i].kind, &settings[i].s, &p);
            for (int s = 0; s < SLOTS; s++) {
                if (row[s] < 0)
                    continue;
                const int want = step < o.accepted[s]
                                     ? b.host.trees.token[s * NODES + o.path[s * DEPTH + step]]
                                     : o.bonus[s];
                EXPECT_MSG(p.accepted[s] == 0 && p.bonus[s] == want,
                           "vocab %d, setting %d, slot %d, token %d: plain %d, tree %d", b.vocab, i, s, step,
                           p.bonus[s], want);
                n_accepted += step < o.accepted[s];
            }
        }
    }
    ck_assert_int_gt(n_accepted, 0);
    be.ops->release(&be, device_none), be.ops->release(&be, device_row), be.ops->release(&be, device_seq);
    free(none), free(row), free(seq);
    close_bench(&b);
}
END_TEST

/* The same slot again, alone in its call, and with its neighbours' rows moved. */
START_TEST(a_choice_does_not_depend_on_the_batch)
{
    struct bench b;
    struct outcome o, again;
    make_case(&b, vocabs[_i]);
    for (int i = 0; i < N_SETTINGS; i++) {
        judge(&b, settings[i].kind, &settings[i].s, &o);
        judge(&b, settings[i].kind, &settings[i].s, &again);
        EXPECT_MSG(memcmp(&o, &again, sizeof o) == 0, "vocab %d, setting %d: another choice the second time",
                   b.vocab, i);
        for (int s = 0; s < SLOTS; s++) {
            struct bench one = b;
            struct trees *t = &one.device.trees;
            const int at = s * NODES;
            if (b.host.first_row[s] < 0)
                continue;
            one.host.trees.slots = t->slots = 1;
            t->n += s, t->token += at, t->parent += at, t->depth += at, t->q_row += at;
            one.device.seq += s;
            one.device.first_row += s;
            judge(&one, settings[i].kind, &settings[i].s, &again);
            EXPECT_MSG(
                again.accepted[0] == o.accepted[s] && again.bonus[0] == o.bonus[s] &&
                    memcmp(again.path, o.path + s * DEPTH, (size_t)o.accepted[s] * sizeof(int)) == 0,
                "vocab %d, setting %d, slot %d: alone %d accepted and bonus %d, in the batch %d and %d",
                b.vocab, i, s, again.accepted[0], again.bonus[0], o.accepted[s], o.bonus[s]);
        }
    }
    close_bench(&b);
}
END_TEST

/* --- distribution -----------------------------------------------------------------------------------------
 */

enum { SMALL = 6, TEXTS = 20000, CALL = 500 };
enum drafting { FIXED, DRAWN, CLAIMED }; /* claimed: the most probable tokens, said to be drawn */

static const float small_row[SMALL] = {1.2f, 0.1f, -0.4f, 1.9f, 0.8f, 0.3f};
static const float small_q[SMALL] = {0.3f, 0.05f, 0.25f, 0.1f, 0.1f, 0.2f};

/* Three children of the root of every slot. */
static void draft_small(const struct bench *b, enum drafting how, uint32_t call)
{
    const struct trees *t = &b->host.trees;
    const int best[3] = {0, 2, 5};
    for (int s = 0; s < CALL; s++) {
        float q[SMALL];
        memcpy(q, small_q, sizeof q);
        memcpy(t->q + (size_t)s * 3 * SMALL, small_q, sizeof small_q);
        for (int k = 0; k < 3; k++) {
            float sum = 0, u = uniform(60, call * CALL + (uint32_t)s, (uint32_t)k);
            int v = 0;
            for (int i = 0; i < SMALL; i++)
                sum += q[i];
            for (float at = q[0]; v < SMALL - 1 && (q[v] == 0 || u * sum >= at);)
                at += q[++v];
            q[v] = 0;
            t->token[s * 3 + k] = how == DRAWN ? v : best[k];
            t->parent[s * 3 + k] = -1;
            t->depth[s * 3 + k] = 1;
            t->q_row[s * 3 + k] = how == FIXED ? -1 : s * 3;
        }
        t->n[s] = 3;
        b->host.first_row[s] = 4 * s;
        b->host.seq[s] = (struct seq_state){.live = 1, .n = 9, .request = call * CALL + (uint32_t)s};
    }
}

static double share_of_threshold(const double *p, const int *count)
{
    double chi = 0, h = 2.0 / (9 * (SMALL - 1));
    for (int v = 0; v < SMALL; v++)
        chi += (count[v] - p[v] * TEXTS) * (count[v] - p[v] * TEXTS) / (p[v] * TEXTS);
    return chi / ((SMALL - 1) * pow(1 - h + 4.753 * sqrt(h), 3));
}

static double small_share(enum accept_kind kind, enum drafting how)
{
    static int accepted[CALL], path[CALL], bonus[CALL];
    const struct sampling s = {.temperature = 1, .top_p = 1, .seed = 21};
    int count[SMALL] = {0}, n_accepted = 0;
    double p[SMALL], sum = 0;
    struct bench b;
    open_bench(&b, SMALL, CALL, 3, 1);
    for (int r = 0; r < b.rows; r++)
        memcpy(b.host.logits + (size_t)r * SMALL, small_row, sizeof small_row);
    for (uint32_t call = 0; call < TEXTS / CALL; call++) {
        draft_small(&b, how, call);
        upload(&b);
        const struct accept a = accept_of(&b, &b.device, kind, &s);
        ok(be.ops->accept(&be, &a));
        ok(be.ops->download(&be, accepted, b.device.accepted, sizeof accepted));
        ok(be.ops->download(&be, path, b.device.path, sizeof path));
        ok(be.ops->download(&be, bonus, b.device.bonus, sizeof bonus));
        ok(be.ops->sync(&be));
        for (int i = 0; i < CALL; i++) {
            const int token = accepted[i] ? b.host.trees.token[i * 3 + path[i]] : bonus[i];
            EXPECT_MSG(token >= 0 && token < SMALL, "text %d: token %d", i, token);
            count[token]++;
            n_accepted += accepted[i];
        }
    }
    for (int v = 0; v < SMALL; v++)
        sum += p[v] = exp((double)small_row[v]);
    for (int v = 0; v < SMALL; v++)
        p[v] /= sum;
    EXPECT(n_accepted > TEXTS / 10);
    close_bench(&b);
    return share_of_threshold(p, count);
}

START_TEST(rejection_and_coupled_are_distributed_as_the_target)
{
    const double share = small_share(_i / 2 ? ACCEPT_COUPLED : ACCEPT_REJECTION, _i % 2 ? DRAWN : FIXED);
    printf("accept case %d: chi-square %.2f of its threshold\n", _i, share);
    ck_assert_msg(share < 1, "case %d: chi-square is %.2f of its threshold", _i, share);
}
END_TEST

START_TEST(a_fixed_token_judged_by_the_ratio_is_caught)
{
    ck_assert_double_gt(small_share(ACCEPT_REJECTION, CLAIMED), 1);
}
END_TEST

/* --- statistics, bad rows, recording ----------------------------------------------------------------------
 */

static struct node_stats stats_of(const struct bench *b, const struct side *s, int with_nodes)
{
    return (struct node_stats){.trees = &s->trees,
                               .first_row = s->first_row,
                               .accepted = s->accepted,
                               .path = s->path,
                               .bonus = s->bonus,
                               .logits = s->logits,
                               .stats = s->stats,
                               .vocab = b->vocab,
                               .with_nodes = with_nodes,
                               .log_p = s->log_p,
                               .rank = s->rank,
                               .entropy = s->entropy,
                               .gap = s->gap,
                               .path_log_p = s->path_log_p};
}

/* Arrays of 4-byte words that are the same on both sides, of which the host's was computed by the reference.
 */
static void same_words(const void *host, const void *device, int n, const char *name, int vocab)
{
    uint32_t got[SLOTS * NODES], want[SLOTS * NODES];
    ok(be.ops->download(&be, got, device, (size_t)n * sizeof *got));
    ok(be.ops->sync(&be));
    memcpy(want, host, (size_t)n * sizeof *want);
    for (int i = 0; i < n; i++)
        EXPECT_MSG(got[i] == want[i], "vocab %d: %s of %d has the bits %08x, expected %08x", vocab, name, i,
                   got[i], want[i]);
}

static void same_statistics(const struct bench *b)
{
    const struct side *h = &b->host, *d = &b->device;
    same_words(h->log_p, d->log_p, SLOTS * NODES, "log p", b->vocab);
    same_words(h->rank, d->rank, SLOTS * NODES, "rank", b->vocab);
    same_words(h->entropy, d->entropy, SLOTS * NODES, "entropy", b->vocab);
    same_words(h->gap, d->gap, SLOTS * NODES, "gap", b->vocab);
    same_words(h->path_log_p, d->path_log_p, SLOTS * (1 + DEPTH), "log p of the path", b->vocab);
}

START_TEST(node_statistics_are_the_references_bit_for_bit)
{
    struct bench b;
    make_case(&b, vocabs[_i]);
    const struct setting *set = &settings[14]; /* relaxed: long paths */
    for (int with_nodes = 0; with_nodes < 2; with_nodes++) {
        const struct accept on_host = accept_of(&b, &b.host, set->kind, &set->s),
                            on_device = accept_of(&b, &b.device, set->kind, &set->s);
        const struct node_stats host = stats_of(&b, &b.host, with_nodes),
                                device = stats_of(&b, &b.device, with_nodes);
        accept_ref(&on_host);
        node_stats_ref(&host);
        ok(be.ops->accept(&be, &on_device));
        ok(be.ops->node_stats(&be, &device));
        same_statistics(&b);
    }
    close_bench(&b);
}
END_TEST

START_TEST(a_row_without_finite_logits_is_told_when_it_is_needed)
{
    struct bench b;
    struct outcome o;
    make_case(&b, 100);
    const struct side *h = &b.host;
    /* Slot 0: the root. Slot 2: the greedy choice at the root is made a child, whose row is bad. Slot 3: a
     * bad row that no choice leads to. */
    const int root = h->first_row[2], child = 2 * NODES;
    h->trees.token[child] = h->stats[root].argmax;
    h->trees.n[2] = 1;
    const int bad[] = {h->first_row[0], root + 1, h->first_row[3] + NODES};
    for (int i = 0; i < 3; i++)
        for (int v = 0; v < 100; v++)
            h->logits[bad[i] * 100 + v] = v % 2 ? NAN : -INFINITY;
    upload(&b);
    for (int i = 0; i < N_SETTINGS; i++) {
        judge(&b, settings[i].kind, &settings[i].s, &o);
        ck_assert_msg(o.accepted[0] == 0 && o.bonus[0] == -1, "setting %d: %d and %d", i, o.accepted[0],
                      o.bonus[0]);
        if (settings[i].kind == ACCEPT_GREEDY)
            ck_assert_msg(o.accepted[2] == 1 && o.bonus[2] == -1, "%d and %d", o.accepted[2], o.bonus[2]);
        ck_assert_msg(o.accepted[3] < NODES && o.bonus[3] >= 0, "setting %d: bonus %d", i, o.bonus[3]);
    }
    close_bench(&b);
}
END_TEST

START_TEST(every_rule_says_when_it_began)
{
    struct bench b;
    void *began = NULL;
    int64_t last = 0;
    make_case(&b, 100);
    ok(be.ops->alloc(&be, sizeof last, &began));
    for (int i = 0; i < N_SETTINGS; i++) {
        struct accept a = accept_of(&b, &b.device, settings[i].kind, &settings[i].s);
        int64_t now;
        a.began = began;
        ok(be.ops->accept(&be, &a));
        ok(be.ops->download(&be, &now, began, sizeof now));
        ok(be.ops->sync(&be));
        ck_assert_msg(now > last, "setting %d: began at %lld, the one before at %lld", i, (long long)now,
                      (long long)last);
        last = now;
    }
    be.ops->release(&be, began);
    close_bench(&b);
}
END_TEST

START_TEST(a_recorded_pass_reads_what_stands_in_memory)
{
    struct bench b;
    struct outcome o;
    int recorded = 0, longest = 0;
    make_case(&b, 100);
    for (int round = 0; round < 4; round++) {
        struct setting set = settings[6];
        const struct accept host = accept_of(&b, &b.host, set.kind, &set.s),
                            device = accept_of(&b, &b.device, set.kind, &set.s);
        const struct node_stats host_stats = stats_of(&b, &b.host, 1),
                                device_stats = stats_of(&b, &b.device, 1);
        for (int s = 0; s < SLOTS; s++)
            b.host.seq[s].n += round;
        b.host.first_row[1] = round % 2 ? 0 : -1;
        upload(&b);
        ok(be.ops->pass_begin(&be, (struct pass_key){.owner = &b, .rows = b.rows}, &recorded));
        ck_assert_int_eq(recorded, round > 0);
        if (!recorded) {
            ok(be.ops->accept(&be, &device));
            ok(be.ops->node_stats(&be, &device_stats));
            ok(be.ops->pass_end(&be, 0));
        }
        fetch(&b, &o);
        ck_assert_int_eq(compare(&b, &set, 6, &o, &longest), 0);
        accept_ref(&host);
        node_stats_ref(&host_stats);
        same_statistics(&b);
    }
    be.ops->pass_forget(&be, &b);
    close_bench(&b);
}
END_TEST

int main(void)
{
    if (backend_open(&be, "cuda", &(struct backend_opts){0})) {
        printf("test_cuda_accept: skipped: %s\n", err_text());
        return CUDA_SUITE_SKIPPED;
    }
    Suite *s = suite_create("cuda_accept");
    TCase *c = tcase_create("cuda_accept");
    tcase_add_loop_test(c, choices_are_the_references_but_for_ties, 0, N_VOCABS);
    tcase_add_loop_test(c, a_coupled_tree_gives_the_tokens_of_plain_decoding, 0, N_VOCABS);
    tcase_add_loop_test(c, a_choice_does_not_depend_on_the_batch, 0, N_VOCABS);
    tcase_add_loop_test(c, rejection_and_coupled_are_distributed_as_the_target, 0, 4);
    tcase_add_test(c, a_fixed_token_judged_by_the_ratio_is_caught);
    tcase_add_loop_test(c, node_statistics_are_the_references_bit_for_bit, 0, N_VOCABS);
    tcase_add_test(c, a_row_without_finite_logits_is_told_when_it_is_needed);
    tcase_add_test(c, every_rule_says_when_it_began);
    tcase_add_test(c, a_recorded_pass_reads_what_stands_in_memory);
    suite_add_tcase(s, c);
    const int failed = cuda_suite_run(s);
    backend_close(&be);
    return failed;
}
