/* Acceptance rules on a target small enough to know exactly: a Markov chain of VOCAB tokens, whose row of
 * logits depends on the token before alone. Lossless means: three tokens decoded with any draft are
 * distributed as the chain says.
 *
 * Statistical tests: N = 20000 texts, Pearson's chi-square over the joint distribution of three tokens (cells
 * of less than 5 expected are merged), against the quantile that a correct rule passes with probability 1e-6,
 * by Wilson and Hilferty: k (1 - 2 / 9k + z sqrt(2 / 9k))^3 for k degrees of freedom, z = 4.753. Seeds are
 * fixed, so a pass stays a pass. */
#include "kernels/node_stats.h"
#include "spec/accept.h"
#include "spec/tree.h"
#include "tests/expect.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 6, NODES = 24, DEPTH = 3, TEXTS = 20000, LENGTH = 3, CELLS = VOCAB * VOCAB * VOCAB };

static float target[VOCAB][VOCAB];  /* logits of the token after row's token */
static float draft_q[VOCAB][VOCAB]; /* the draft's distributions */

static float uniform(uint32_t request, int position, uint32_t use, int index)
{
    return philox_uniform(philox(3, request, (uint32_t)position, use, (uint32_t)index).v[0]);
}

static void setup(void)
{
    for (int i = 0; i < VOCAB; i++) {
        float sum = 0;
        for (int j = 0; j < VOCAB; j++) {
            target[i][j] = 3 * uniform(900, i, 50, j);
            draft_q[i][j] = expf(3 * uniform(901, i, 50, j));
            sum += draft_q[i][j];
        }
        for (int j = 0; j < VOCAB; j++)
            draft_q[i][j] /= sum;
    }
}

/* A draft for tests: fills a tree for the text whose last token is `root`. */
typedef void (*draft_fn)(struct tree *t, uint32_t request, int position, int root);

static int token_of(const struct tree *t, int node, int root)
{
    return node == TREE_ROOT ? root : t->nodes[node].token;
}

/* Draw `count` children from q without replacement; those already there are out of the urn. */
static void draw_children(struct tree *t, int node, int count, uint32_t request, int position, int root)
{
    const float *q = draft_q[token_of(t, node, root)];
    for (int k = 0; k < count; k++) {
        float weight[VOCAB], sum = 0;
        for (int v = 0; v < VOCAB; v++) {
            weight[v] = tree_child(t, node, v) >= 0 ? 0 : q[v];
            sum += weight[v];
        }
        float u = uniform(request, position, PHILOX_DRAFT, (node + 1) * 16 + k) * sum, below = 0;
        int v = 0;
        while (v < VOCAB - 1 && (weight[v] == 0 || u >= below + weight[v]))
            below += weight[v++];
        if (tree_child(t, node, v) < 0)
            tree_add(t, node, v, logf(q[v]), q);
    }
}

static void draft_nothing(struct tree *t, uint32_t request, int position, int root)
{
    (void)t, (void)request, (void)position, (void)root;
}

static void draft_chain_fixed(struct tree *t, uint32_t request, int position, int root)
{
    (void)request, (void)position;
    for (int d = 0, node = TREE_ROOT; d < DEPTH; d++)
        node = tree_add(t, node, (token_of(t, node, root) * 2 + 1) % VOCAB, 0, NULL);
}

static void draft_chain_drawn(struct tree *t, uint32_t request, int position, int root)
{
    for (int d = 0; d < DEPTH; d++)
        draw_children(t, t->n - 1, 1, request, position + d, root);
}

static void draft_tree_fixed(struct tree *t, uint32_t request, int position, int root)
{
    (void)request, (void)position;
    for (int node = TREE_ROOT; node < t->n; node++)
        for (int k = 0; k < 3; k++)
            tree_add(t, node, (token_of(t, node, root) * 2 + 3 * k + 1 + k) % VOCAB, 0, NULL);
}

static void draft_tree_drawn(struct tree *t, uint32_t request, int position, int root)
{
    for (int node = TREE_ROOT; node < t->n && node < 7; node++)
        draw_children(t, node, 3, request, position + (node < 0 ? 0 : t->nodes[node].depth), root);
}

/* A fixed child first, drawn ones after it: the urn holds no fixed child. */
static void draft_tree_mixed(struct tree *t, uint32_t request, int position, int root)
{
    for (int node = TREE_ROOT; node < t->n && node < 7; node++) {
        tree_add(t, node, (token_of(t, node, root) + 1) % VOCAB, 0, NULL);
        draw_children(t, node, 2, request, position + (node < 0 ? 0 : t->nodes[node].depth), root);
    }
}

/* Wrong on purpose: the most probable token, claimed to be a random draw. */
static void draft_chain_claims_to_be_drawn(struct tree *t, uint32_t request, int position, int root)
{
    (void)request, (void)position;
    for (int d = 0, node = TREE_ROOT; d < DEPTH; d++) {
        const float *q = draft_q[token_of(t, node, root)];
        int best = 0;
        for (int v = 1; v < VOCAB; v++)
            best = q[v] > q[best] ? v : best;
        node = tree_add(t, node, best, 0, q);
    }
}

/* A rule under test: of the product, or wrong on purpose. */
struct rule {
    enum accept_kind kind;
    void (*accept)(const struct accept *a);
};
static const struct rule greedy = {ACCEPT_GREEDY, accept_ref}, coupled = {ACCEPT_COUPLED, accept_ref},
                         rejection = {ACCEPT_REJECTION, accept_ref}, relaxed = {ACCEPT_RELAXED, accept_ref};

/* What one call did to one tree. */
struct accepted {
    int n, *path, bonus;
};

/* Everything one accept call needs, for a tree over the chain; its arrays are those of the only slot. */
struct bench {
    struct tree tree;
    float logits[(1 + NODES) * VOCAB];
    struct logit_stats stats[1 + NODES];
    float scratch[4 * VOCAB], q[NODES * VOCAB], log_q[NODES];
    int n, token[NODES], parent[NODES], depth[NODES], q_row[NODES];
    int path[DEPTH];
};

static void bench_init(struct bench *b)
{
    ck_assert_int_eq(tree_init(&b->tree, NODES, DEPTH), 0);
    ck_assert_uint_eq(accept_bytes(VOCAB), sizeof b->scratch);
}

static void bench_deinit(struct bench *b)
{
    tree_deinit(&b->tree);
}

static struct trees lay_out(struct bench *b)
{
    b->n = b->tree.n;
    for (int k = 0; k < b->n; k++) {
        const struct tree_node *node = &b->tree.nodes[k];
        b->token[k] = node->token;
        b->parent[k] = node->parent;
        b->depth[k] = node->depth;
        b->log_q[k] = node->log_q;
        b->q_row[k] = node->q ? k : -1;
        if (node->q)
            memcpy(b->q + k * VOCAB, node->q, VOCAB * sizeof *b->q);
    }
    return (struct trees){.slots = 1,
                          .max_nodes = NODES,
                          .max_depth = DEPTH,
                          .n = &b->n,
                          .token = b->token,
                          .parent = b->parent,
                          .depth = b->depth,
                          .log_q = b->log_q,
                          .q_row = b->q_row,
                          .q = b->q};
}

/* Judge b->tree under the text that ends in `root`. */
static struct accepted judge(struct bench *b, const struct rule *rule, const struct sampling *s,
                             uint32_t request, int position, int root)
{
    const struct trees trees = lay_out(b);
    const struct seq_state seq = {.live = 1, .n = position, .request = request};
    const int first_row = 0;
    struct accepted out = {.path = b->path};
    for (int node = TREE_ROOT; node < b->tree.n; node++)
        memcpy(b->logits + (1 + node) * VOCAB, target[token_of(&b->tree, node, root)], sizeof target[0]);
    logits_ref(&(struct logits){
        .logits = b->logits, .out = b->stats, .rows = 1 + b->tree.n, .vocab = VOCAB, .threads = 1});
    rule->accept(&(struct accept){.kind = rule->kind,
                                  .sampling = *s,
                                  .seq = &seq,
                                  .trees = &trees,
                                  .first_row = &first_row,
                                  .logits = b->logits,
                                  .stats = b->stats,
                                  .vocab = VOCAB,
                                  .accepted = &out.n,
                                  .path = out.path,
                                  .bonus = &out.bonus,
                                  .scratch = b->scratch});
    return out;
}

/* Decode LENGTH tokens after token 0 into text; returns how many draft nodes were accepted. */
static int decode(struct bench *b, draft_fn draft, const struct rule *rule, const struct sampling *s,
                  uint32_t request, int *text)
{
    int n = 0, n_accepted = 0, root = 0;
    while (n < LENGTH) {
        tree_clear(&b->tree);
        draft(&b->tree, request, n, root);
        struct accepted a = judge(b, rule, s, request, n, root);
        EXPECT(a.bonus >= 0);
        for (int i = 0; i <= a.n && n < LENGTH; i++)
            text[n++] = root = i < a.n ? b->tree.nodes[a.path[i]].token : a.bonus;
        n_accepted += a.n;
    }
    return n_accepted;
}

/* The chain's own probabilities under temperature and top-k, in double. */
static void exact_row(const struct sampling *s, int token, double *p)
{
    double sum = 0;
    for (int v = 0; v < VOCAB; v++) {
        int rank = logits_rank(target[token], VOCAB, v);
        p[v] = s->top_k && rank > s->top_k ? 0 : exp((double)target[token][v] / s->temperature);
        sum += p[v];
    }
    for (int v = 0; v < VOCAB; v++)
        p[v] /= sum;
}

static void exact_joint(const struct sampling *s, double *joint)
{
    double row[VOCAB][VOCAB];
    for (int v = 0; v < VOCAB; v++)
        exact_row(s, v, row[v]);
    for (int c = 0; c < CELLS; c++) {
        int a = c / (VOCAB * VOCAB), b = c / VOCAB % VOCAB;
        joint[c] = row[0][a] * row[a][b] * row[b][c % VOCAB];
    }
}

/* Chi-square of the counts divided by its threshold: above 1 is a failure. A count where nothing may fall is
 * infinite. */
static double chi_square_share(const double *p, const int *count, int cells, int total)
{
    double chi = 0, rest_p = 0, rest = 0;
    int k = -1;
    for (int c = 0; c < cells; c++) {
        double expected = p[c] * total;
        if (p[c] == 0 && count[c] > 0)
            return INFINITY;
        if (expected < 5) {
            rest_p += p[c];
            rest += count[c];
            continue;
        }
        chi += (count[c] - expected) * (count[c] - expected) / expected;
        k++;
    }
    if (rest_p * total >= 5) {
        chi += (rest - rest_p * total) * (rest - rest_p * total) / (rest_p * total);
        k++;
    }
    double h = 2.0 / (9 * k);
    return chi / (k * pow(1 - h + 4.753 * sqrt(h), 3));
}

static double share_of_threshold(draft_fn draft, const struct rule *rule, const struct sampling *s,
                                 int *n_accepted)
{
    static int count[CELLS];
    double joint[CELLS];
    struct bench b;
    bench_init(&b);
    memset(count, 0, sizeof count);
    *n_accepted = 0;
    for (uint32_t request = 0; request < TEXTS; request++) {
        int text[LENGTH];
        *n_accepted += decode(&b, draft, rule, s, request, text);
        count[(text[0] * VOCAB + text[1]) * VOCAB + text[2]]++;
    }
    bench_deinit(&b);
    exact_joint(s, joint);
    return chi_square_share(joint, count, CELLS, TEXTS);
}

static const struct sampling plain = {.temperature = 1, .top_p = 1, .seed = 17, .relaxed_top_k = 1};
static const struct sampling sharp = {.temperature = 0.7f, .top_p = 1, .seed = 18, .relaxed_top_k = 1};
static const struct sampling top3 = {
    .temperature = 1, .top_k = 3, .top_p = 1, .seed = 19, .relaxed_top_k = 1};
static const struct sampling *const settings[] = {&plain, &sharp, &top3};
static const draft_fn honest_drafts[] = {draft_nothing,    draft_chain_fixed, draft_chain_drawn,
                                         draft_tree_fixed, draft_tree_drawn,  draft_tree_mixed};

START_TEST(rejection_is_distributed_as_the_target)
{
    int n_accepted;
    draft_fn draft = honest_drafts[_i / 3];
    double share = share_of_threshold(draft, &rejection, settings[_i % 3], &n_accepted);
    ck_assert_msg(share < 1, "draft %d, setting %d: chi-square is %.2f of its threshold", _i / 3, _i % 3,
                  share);
    ck_assert(draft == draft_nothing ? n_accepted == 0 : n_accepted > TEXTS / 10);
}
END_TEST

START_TEST(coupled_is_distributed_as_the_target)
{
    int n_accepted;
    double share = share_of_threshold(_i % 2 ? draft_tree_drawn : draft_nothing, &coupled, settings[_i / 2],
                                      &n_accepted);
    ck_assert_msg(share < 1, "setting %d: chi-square is %.2f of its threshold", _i / 2, share);
}
END_TEST

/* The planted wrong rule: after a rejection the bonus comes from p, not from what the rejection left of it.
 */
static void accept_without_residual(const struct accept *a)
{
    static int id[VOCAB];
    static float prob[VOCAB], work[VOCAB];
    struct sample_dist d = {.id = id, .prob = prob, .work = work};
    accept_ref(a);
    const int row = *a->accepted ? 1 + a->path[*a->accepted - 1] : 0;
    const struct sample_filter f = {a->sampling.temperature, a->sampling.top_k, a->sampling.top_p,
                                    a->sampling.min_p};
    const struct sample_key key = {a->sampling.seed, a->seq->request, (uint32_t)(a->seq->n + *a->accepted)};
    sample_dist_from_logits(&d, a->logits + row * a->vocab, a->vocab, a->stats[row].max, &f);
    *a->bonus = d.id[sample_categorical(d.prob, d.n, &key, PHILOX_SYNTHETIC, 0)];
}
static const struct rule without_residual = {ACCEPT_REJECTION, accept_without_residual};

START_TEST(a_rule_without_residual_is_caught)
{
    int n;
    ck_assert_double_gt(share_of_threshold(honest_drafts[1 + _i], &without_residual, &plain, &n), 1);
}
END_TEST

START_TEST(a_rule_without_residual_passes_only_when_nothing_is_drafted)
{
    int n;
    ck_assert_double_lt(share_of_threshold(draft_nothing, &without_residual, &plain, &n), 1);
}
END_TEST

START_TEST(a_fixed_token_judged_by_the_ratio_is_caught)
{
    int n;
    ck_assert_double_gt(share_of_threshold(draft_chain_claims_to_be_drawn, &rejection, &plain, &n), 1);
}
END_TEST

START_TEST(rejection_takes_every_token_drawn_from_p_itself)
{
    static int id[VOCAB];
    static float prob[VOCAB], work[VOCAB];
    struct sample_dist dist = {.id = id, .prob = prob, .work = work};
    struct bench b;
    bench_init(&b);
    float saved[VOCAB][VOCAB];
    memcpy(saved, draft_q, sizeof saved);
    struct sample_filter f = {1, 0, 1, 0};
    for (int v = 0; v < VOCAB; v++) {
        float max = target[v][0];
        for (int j = 1; j < VOCAB; j++)
            max = fmaxf(max, target[v][j]);
        sample_dist_from_logits(&dist, target[v], VOCAB, max, &f);
        memcpy(draft_q[v], dist.prob, sizeof draft_q[v]);
    }
    for (uint32_t request = 0; request < 2000; request++) {
        tree_clear(&b.tree);
        draft_chain_drawn(&b.tree, request, 0, 0);
        ck_assert_int_eq(judge(&b, &rejection, &plain, request, 0, 0).n, DEPTH);
    }
    memcpy(draft_q, saved, sizeof saved);
    bench_deinit(&b);
}
END_TEST

/* The text of plain decoding under a rule, token by token, and then what every draft makes of it. */
static void assert_equals_plain(const struct rule *rule, const struct sampling *s)
{
    struct bench b;
    bench_init(&b);
    int n_accepted = 0;
    for (uint32_t request = 0; request < 300; request++) {
        int expected[LENGTH], text[LENGTH];
        decode(&b, draft_nothing, rule, s, request, expected);
        for (size_t d = 1; d < sizeof honest_drafts / sizeof *honest_drafts; d++) {
            n_accepted += decode(&b, honest_drafts[d], rule, s, request, text);
            EXPECT(memcmp(text, expected, sizeof text) == 0);
        }
    }
    ck_assert_int_gt(n_accepted, 0);
    bench_deinit(&b);
}

START_TEST(coupled_equals_plain_sampling_token_for_token)
{
    const struct sampling all[] = {plain,
                                   sharp,
                                   top3,
                                   {.temperature = 1, .top_p = 0.6f, .seed = 4},
                                   {.temperature = 1.3f, .top_p = 1, .min_p = 0.3f, .seed = 5}};
    assert_equals_plain(&coupled, &all[_i]);
}
END_TEST

START_TEST(temperature_0_is_greedy_under_coupled_and_rejection)
{
    const struct sampling cold = {.top_p = 1, .seed = 6};
    struct bench b;
    bench_init(&b);
    const struct rule *const rule[] = {&coupled, &rejection};
    for (int r = 0; r < 2; r++) {
        assert_equals_plain(rule[r], &cold);
        for (uint32_t request = 0; request < 50; request++) {
            int a[LENGTH], g[LENGTH];
            decode(&b, draft_tree_drawn, rule[r], &cold, request, a);
            decode(&b, draft_nothing, &greedy, &plain, request, g);
            ck_assert_mem_eq(a, g, sizeof a);
        }
    }
    bench_deinit(&b);
}
END_TEST

START_TEST(greedy_takes_the_longest_path_of_argmaxes)
{
    struct bench b;
    bench_init(&b);
    assert_equals_plain(&greedy, &plain);
    for (uint32_t request = 0; request < 300; request++) {
        tree_clear(&b.tree);
        draft_tree_drawn(&b.tree, request, 0, 0);
        struct accepted a = judge(&b, &greedy, &plain, request, 0, 0);
        int node = TREE_ROOT, n = 0;
        for (int child;; node = child, n++) {
            child = tree_child(&b.tree, node, b.stats[1 + node].argmax);
            if (child < 0)
                break;
            ck_assert_int_lt(n, a.n);
            ck_assert_int_eq(a.path[n], child);
        }
        ck_assert_int_eq(n, a.n);
        ck_assert_int_eq(a.bonus, b.stats[1 + node].argmax);
    }
    bench_deinit(&b);
}
END_TEST

/* By sorting: the child that relaxed acceptance goes to, -1 none. */
static int relaxed_by_sorting(const struct bench *b, int node, int root, int top_k, double delta)
{
    double p[VOCAB];
    int order[VOCAB];
    exact_row(&plain, token_of(&b->tree, node, root), p);
    for (int i = 0; i < VOCAB; i++) {
        int at = i;
        for (; at > 0 && p[order[at - 1]] < p[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    for (int k = 0; k < top_k && k < VOCAB; k++) {
        int child = tree_child(&b->tree, node, order[k]);
        if (child >= 0 && (k == 0 || p[order[k]] >= p[order[0]] - delta))
            return child;
    }
    return -1;
}

START_TEST(relaxed_takes_what_sorting_says)
{
    struct bench b;
    bench_init(&b);
    int beyond_greedy = 0;
    for (uint32_t request = 0; request < 2000; request++) {
        struct sampling s = plain;
        s.relaxed_top_k = 1 + (int)(request % 4);
        s.relaxed_delta = 0.9f * uniform(request, 0, 60, 0);
        int root = (int)(request % VOCAB), node = TREE_ROOT, n = 0;
        tree_clear(&b.tree);
        (request & 1 ? draft_tree_drawn : draft_chain_drawn)(&b.tree, request, 0, root);
        struct accepted a = judge(&b, &relaxed, &s, request, 0, root);
        for (int child;; node = child, n++) {
            child = relaxed_by_sorting(&b, node, root, s.relaxed_top_k, s.relaxed_delta);
            if (child < 0)
                break;
            ck_assert_int_lt(n, a.n);
            ck_assert_int_eq(a.path[n], child);
            beyond_greedy += b.tree.nodes[child].token != b.stats[1 + node].argmax;
        }
        ck_assert_int_eq(n, a.n);
        ck_assert_int_eq(a.bonus, b.stats[1 + node].argmax);
    }
    ck_assert_int_gt(beyond_greedy, 100);
    bench_deinit(&b);
}
END_TEST

START_TEST(only_relaxed_is_flagged_as_lossy)
{
    int n = 0;
    for (const struct accept_rule *r = accept_rules; r->name; r++, n++) {
        ck_assert_ptr_eq(accept_rule_find(r->name), r);
        ck_assert_int_eq(r->lossy, strcmp(r->name, "relaxed") == 0);
        ck_assert_int_eq(r->kind, n);
    }
    ck_assert_int_eq(n, 4);
    ck_assert_ptr_null(accept_rule_find("typical"));
}
END_TEST

START_TEST(a_row_without_finite_logits_is_told_when_it_is_needed)
{
    struct bench b;
    const struct rule *const rules[] = {&greedy, &coupled, &rejection, &relaxed};
    bench_init(&b);
    for (int i = 0; i < 8; i++) {
        /* Every token is a child of the root, so that the bad row of the children or the root is needed. */
        float saved[VOCAB][VOCAB];
        memcpy(saved, target, sizeof saved);
        const int in_root = i < 4;
        for (int v = 0; v < VOCAB; v++)
            for (int j = 0; j < VOCAB && in_root == (v == 0); j++)
                target[v][j] = NAN;
        tree_clear(&b.tree);
        for (int v = 1; v < VOCAB; v++)
            tree_add(&b.tree, TREE_ROOT, v, 0, NULL);
        target[0][0] = in_root ? NAN : -INFINITY;
        const struct accepted a = judge(&b, rules[i % 4], &plain, 3, 5, 0);
        memcpy(target, saved, sizeof saved);
        ck_assert_int_eq(a.n, !in_root);
        ck_assert_int_eq(a.bonus, -1);
    }
    bench_deinit(&b);
}
END_TEST

/* Three slots in one call, the one in the middle not in this pass, rows in another order than slots. */
START_TEST(slots_are_judged_as_if_alone)
{
    enum { SLOTS = 3 };
    static struct bench one[SLOTS];
    static float logits[SLOTS * (1 + NODES) * VOCAB], q[SLOTS * NODES * VOCAB], scratch[4 * VOCAB];
    static struct logit_stats stats[SLOTS * (1 + NODES)];
    int n[SLOTS], token[SLOTS * NODES], parent[SLOTS * NODES], depth[SLOTS * NODES], q_row[SLOTS * NODES];
    int accepted[SLOTS], path[SLOTS * DEPTH], bonus[SLOTS] = {-7, -7, -7}, n_accepted = 0;
    const int first_row[SLOTS] = {1 + NODES, -1, 0};
    const struct trees trees = {.slots = SLOTS,
                                .max_nodes = NODES,
                                .max_depth = DEPTH,
                                .n = n,
                                .token = token,
                                .parent = parent,
                                .depth = depth,
                                .q_row = q_row,
                                .q = q};
    for (uint32_t request = 0; request < 100; request++)
        for (enum accept_kind kind = ACCEPT_GREEDY; kind <= ACCEPT_RELAXED; kind++) {
            const struct rule rule = {kind, accept_ref};
            struct seq_state seq[SLOTS];
            struct accepted want[SLOTS];
            for (int s = 0; s < SLOTS; s++) {
                struct bench *b = &one[s];
                bench_init(b);
                seq[s] = (struct seq_state){.live = 1, .n = 9 + s, .request = request + (uint32_t)s};
                (s ? draft_tree_mixed : draft_tree_fixed)(&b->tree, request, 9 + s, s);
                want[s] = judge(b, &rule, &top3, seq[s].request, seq[s].n, s);
                n[s] = b->n;
                for (int k = 0; k < b->n; k++) {
                    token[s * NODES + k] = b->token[k];
                    parent[s * NODES + k] = b->parent[k];
                    depth[s * NODES + k] = b->depth[k];
                    q_row[s * NODES + k] = b->q_row[k] < 0 ? -1 : s * NODES + b->q_row[k];
                }
                memcpy(q + s * NODES * VOCAB, b->q, sizeof b->q);
                for (int r = 0; r <= b->n && first_row[s] >= 0; r++) {
                    memcpy(logits + (first_row[s] + r) * VOCAB, b->logits + r * VOCAB,
                           VOCAB * sizeof *logits);
                    stats[first_row[s] + r] = b->stats[r];
                }
            }
            accept_ref(&(struct accept){kind, top3, seq, &trees, first_row, logits, stats, VOCAB, accepted,
                                        path, bonus, NULL, scratch});
            ck_assert_int_eq(accepted[1], 0);
            ck_assert_int_eq(bonus[1], -7);
            for (int s = 0; s < SLOTS; s += 2) {
                EXPECT(accepted[s] == want[s].n && bonus[s] == want[s].bonus);
                EXPECT(memcmp(path + s * DEPTH, want[s].path, (size_t)want[s].n * sizeof *path) == 0);
                n_accepted += accepted[s];
            }
            for (int s = 0; s < SLOTS; s++)
                bench_deinit(&one[s]);
        }
    ck_assert_int_gt(n_accepted, 100);
}
END_TEST

START_TEST(node_statistics_are_those_of_the_parents_row)
{
    struct bench b;
    float log_p[NODES], entropy[NODES], gap[NODES], path_log_p[1 + DEPTH];
    int rank[NODES], beyond_first = 0;
    bench_init(&b);
    for (uint32_t request = 0; request < 50; request++) {
        tree_clear(&b.tree);
        draft_tree_drawn(&b.tree, request, 0, 0);
        const struct accepted a = judge(&b, &coupled, &plain, request, 0, 0);
        const struct trees trees = lay_out(&b);
        const int first_row = 0;
        logits_ref(&(struct logits){.logits = b.logits,
                                    .out = b.stats,
                                    .rows = 1 + b.n,
                                    .vocab = VOCAB,
                                    .threads = 1,
                                    .with_entropy = 1});
        node_stats_ref(&(struct node_stats){.trees = &trees,
                                            .first_row = &first_row,
                                            .accepted = &a.n,
                                            .path = a.path,
                                            .bonus = &a.bonus,
                                            .logits = b.logits,
                                            .stats = b.stats,
                                            .vocab = VOCAB,
                                            .with_nodes = 1,
                                            .log_p = log_p,
                                            .rank = rank,
                                            .entropy = entropy,
                                            .gap = gap,
                                            .path_log_p = path_log_p});
        for (int k = 0; k < b.n; k++) {
            double p[VOCAB], h = 0;
            int before = 0;
            exact_row(&plain, token_of(&b.tree, b.parent[k], 0), p);
            for (int v = 0; v < VOCAB; v++) {
                h -= p[v] * log(p[v]);
                before += p[v] > p[b.token[k]];
            }
            const struct logit_stats *st = &b.stats[1 + b.parent[k]];
            EXPECT(rank[k] == before + 1);
            EXPECT(fabs(log_p[k] - log(p[b.token[k]])) < 1e-5);
            EXPECT(fabs(entropy[k] - h) < 1e-5);
            EXPECT(gap[k] == st->max - st->second);
            beyond_first += rank[k] > 1;
        }
        for (int i = 0; i <= a.n; i++) {
            const int from = i ? a.path[i - 1] : TREE_ROOT;
            const int id = i < a.n ? b.token[a.path[i]] : a.bonus;
            EXPECT(path_log_p[i] == b.logits[(1 + from) * VOCAB + id] - b.stats[1 + from].lse);
        }
    }
    ck_assert_int_gt(beyond_first, 50);
    bench_deinit(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("accept");
    TCase *c = tcase_create("accept");
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_loop_test(c, rejection_is_distributed_as_the_target, 0, 18);
    tcase_add_loop_test(c, coupled_is_distributed_as_the_target, 0, 6);
    tcase_add_loop_test(c, a_rule_without_residual_is_caught, 0, 5);
    tcase_add_test(c, a_rule_without_residual_passes_only_when_nothing_is_drafted);
    tcase_add_test(c, a_fixed_token_judged_by_the_ratio_is_caught);
    tcase_add_test(c, rejection_takes_every_token_drawn_from_p_itself);
    tcase_add_loop_test(c, coupled_equals_plain_sampling_token_for_token, 0, 5);
    tcase_add_test(c, temperature_0_is_greedy_under_coupled_and_rejection);
    tcase_add_test(c, greedy_takes_the_longest_path_of_argmaxes);
    tcase_add_test(c, relaxed_takes_what_sorting_says);
    tcase_add_test(c, only_relaxed_is_flagged_as_lossy);
    tcase_add_test(c, a_row_without_finite_logits_is_told_when_it_is_needed);
    tcase_add_test(c, slots_are_judged_as_if_alone);
    tcase_add_test(c, node_statistics_are_those_of_the_parents_row);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
