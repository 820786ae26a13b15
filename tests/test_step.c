/* The operations around a pass, against models that say what they mean: which cell a row must see at each
 * position, and what appending token by token leaves. Random slots, texts and trees. */
#include "engine/err.h"
#include "tests/expect.h"
#include "tests/toy_step.h"
#include <stdlib.h>
#include <string.h>

enum { CAP = 40, SEEDS = 400 };
static struct backend be;
static const struct trees shapes[] = {{.slots = 1, .max_nodes = 0, .max_depth = 0},
                                      {.slots = 1, .max_nodes = 5, .max_depth = 5},
                                      {.slots = 4, .max_nodes = 12, .max_depth = 4},
                                      {.slots = 7, .max_nodes = 3, .max_depth = 8},
                                      {.slots = 3, .max_nodes = 40, .max_depth = 40}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void setup(void)
{
    ck_assert_msg(backend_open(&be, "cpu", &(struct backend_opts){.threads = 1}) == 0, "%s", err_text());
}

static void teardown(void)
{
    backend_close(&be);
}

static void ok(int rc)
{
    EXPECT_MSG(rc == 0, "%s", err_text());
}

/* The node that stands `up` levels above node k of the slot, -1: the root. */
static int ancestor(const struct trees *t, int slot, int k, int up)
{
    for (; up > 0; up--)
        k = t->parent[slot * t->max_nodes + k];
    return k;
}

/* A row of depth d sees the text in its cells, then the root and its ancestors in theirs. */
static void check_row(const struct step *s, const struct rows *rows, int slot, int k, int r)
{
    const int n = s->seq[slot].n, depth = k < 0 ? 0 : s->trees.depth[slot * s->trees.max_nodes + k];
    EXPECT(rows->slot[r] == slot && rows->pos[r] == n - 1 + depth && rows->cell[r] == n + k);
    EXPECT(rows->token[r] ==
           (k < 0 ? s->text[slot * s->cap + n - 1] : s->trees.token[slot * s->trees.max_nodes + k]));
    EXPECT(rows->base[r] == rows->pos[r] + 1 || rows->base[r] == n - 1);
    for (int p = 0; p <= rows->pos[r]; p++) {
        const int node = p < n ? -1 : ancestor(&s->trees, slot, k, rows->pos[r] - p);
        EXPECT(rows_cell(rows, r, p) == (p < n ? p : n + node));
    }
}

/* Returns the live rows. */
static int check_plan(const struct step *s, int envelope)
{
    const struct rows rows = step_rows(s, envelope);
    int r = 0, seqs = 0;
    for (int slot = 0; slot < s->trees.slots; slot++) {
        EXPECT(s->first_row[slot] == (s->seq[slot].live ? r : -1));
        if (!s->seq[slot].live)
            continue;
        for (int k = -1; k < s->trees.n[slot]; k++)
            check_row(s, &rows, slot, k, r++);
        seqs++;
    }
    EXPECT(s->count[0] == r && s->count[1] == seqs);
    for (int dead = r; dead < envelope; dead++)
        EXPECT(rows.slot[dead] == -1 && rows.token[dead] == 0 && rows.pos[dead] == 0 &&
               rows.cell[dead] == 0 && rows.base[dead] == 1);
    return r;
}

START_TEST(a_plan_shows_each_row_its_text_and_its_ancestors)
{
    struct toy_step t;
    toy_step_open(&t, &be, &shapes[_i], CAP);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        toy_step_fill(&t, seed);
        toy_step_send(&t);
        ok(be.ops->step_plan(&be, &t.on, t.on.max_rows));
        toy_step_fetch(&t);
        const int n = check_plan(&t.host, t.host.max_rows);
        if (n > 0) { /* an envelope without room to spare */
            ok(be.ops->step_plan(&be, &t.on, n));
            toy_step_fetch(&t);
            check_plan(&t.host, n);
        }
        EXPECT(t.host.clock[STEP_BEGIN] > 0 && t.host.clock[STEP_VERIFY] >= t.host.clock[STEP_BEGIN]);
    }
    toy_step_close(&t);
}
END_TEST

/* What appending one by one leaves. */
struct expected {
    int n, emitted, token[CAP], end;
};

static int stops(const struct toy_step *t, int token)
{
    for (int i = 0; i < TOY_STOPS; i++)
        if (t->host_stop[i] == token)
            return 1;
    return 0;
}

static struct expected append_all(const struct toy_step *t, int slot)
{
    const struct step *s = &t->host;
    struct expected e = {.n = s->seq[slot].n, .end = STEP_GOES_ON};
    if (s->bonus[slot] < 0) {
        e.end = STEP_NOT_FINITE;
        return e;
    }
    for (int i = 0; i <= s->accepted[slot] && e.end == STEP_GOES_ON; i++) {
        const int node = i < s->accepted[slot] ? s->accepted_path[slot * s->trees.max_depth + i] : -1;
        const int token = node < 0 ? s->bonus[slot] : s->trees.token[slot * s->trees.max_nodes + node];
        e.token[e.emitted++] = token;
        e.n++;
        if (stops(t, token))
            e.end = STEP_STOP_TOKEN;
        else if (e.n == s->seq[slot].end)
            e.end = STEP_LENGTH;
        else if (e.n == s->seq[slot].context_end)
            e.end = STEP_CONTEXT;
    }
    return e;
}

static void check_nodes(const struct step *s, const struct step_entry *e, int slot)
{
    for (int i = slot * s->trees.max_nodes; i < slot * s->trees.max_nodes + s->trees.n[slot]; i++) {
        const struct step_node want = {s->trees.token[i], s->trees.parent[i], s->trees.depth[i], s->rank[i],
                                       s->trees.log_q[i], s->log_p[i],        s->entropy[i],     s->gap[i]};
        EXPECT(memcmp(&e->node[i], &want, sizeof want) == 0);
    }
}

static void check_slot(const struct toy_step *t, const struct step_entry *e, int slot,
                       const struct expected *want, int n)
{
    const struct step *s = &t->host;
    const struct step_slot *did = &e->slot[slot];
    const int deep = s->trees.max_depth;
    EXPECT(did->serial == s->seq[slot].serial && did->position == n && did->proposed == s->trees.n[slot]);
    EXPECT(did->accepted == s->accepted[slot] && did->emitted == want->emitted && did->end == want->end);
    EXPECT(s->seq[slot].n == want->n && s->seq[slot].live == (want->end == STEP_GOES_ON));
    int deepest = 0;
    for (int k = 0; k < s->trees.n[slot]; k++)
        deepest = s->trees.depth[slot * s->trees.max_nodes + k] > deepest
                      ? s->trees.depth[slot * s->trees.max_nodes + k]
                      : deepest;
    EXPECT(did->depth == deepest);
    for (int i = 0; i < want->emitted; i++) {
        EXPECT(e->token[slot * (1 + deep) + i] == want->token[i]);
        EXPECT(e->log_p[slot * (1 + deep) + i] == s->emitted_log_p[slot * (1 + deep) + i]);
        EXPECT(s->text[slot * s->cap + n + i] == want->token[i]);
    }
    for (int i = 0; i < did->accepted; i++)
        EXPECT(e->path[slot * deep + i] == s->accepted_path[slot * deep + i]);
    check_nodes(s, e, slot);
}

/* The cell that now stands at position n + i was that of the i-th accepted node; all other cells stay. */
static void check_cells(const struct toy_step *t, const struct toy_cache *c, int slot, int n)
{
    const struct step *s = &t->host;
    for (int l = 0; l < c->n; l++)
        for (int h = 0; h < TOY_CACHE_HEADS; h++)
            for (int cell = 0; cell < c->host[l].cap; cell++) {
                const int i = cell - n, moved = s->first_row[slot] >= 0 && i >= 0 && i < s->accepted[slot];
                const int from = moved ? n + s->accepted_path[slot * s->trees.max_depth + i] : cell;
                for (int d = 0; d < TOY_CACHE_DIM; d++) {
                    const unsigned char *k = (const unsigned char *)(kv_key(&c->host[l], slot, h, cell) +
                                                                     d * KV_BLOCK),
                                        *v =
                                            (const unsigned char *)(kv_value(&c->host[l], slot, h, cell) + d);
                    const size_t key = 4 * (kv_key_at(&c->host[l], slot, h, from) + (size_t)d * KV_BLOCK),
                                 value = 4 * (kv_value_at(&c->host[l], slot, h, from) + (size_t)d);
                    for (size_t b = 0; b < 4; b++)
                        EXPECT(k[b] == toy_cache_byte(2 * l, key + b) &&
                               v[b] == toy_cache_byte(2 * l + 1, value + b));
                }
            }
}

/* Different experts of the live rows, counted by looking for each; and who chose them. */
static void check_experts(const struct toy_step *t, const struct step_entry *e)
{
    const int n = t->host.count[0] * TOY_TOP_K;
    for (int l = 0; l < TOY_MOE_LAYERS; l++) {
        const int *chosen = t->host_chosen + l * t->host.max_rows * TOY_TOP_K;
        int distinct = 0;
        for (int id = 0; id < TOY_CHOICES; id++) {
            int found = 0;
            for (int i = 0; i < n; i++)
                found |= chosen[i] == id;
            distinct += found;
        }
        EXPECT_MSG(e->distinct[l] == distinct, "layer %d: %d experts, expected %d", l, e->distinct[l],
                   distinct);
        EXPECT(n == 0 || memcmp(e->expert + l * n, chosen, (size_t)n * sizeof(int)) == 0);
    }
}

START_TEST(a_commit_is_what_appending_token_by_token_leaves)
{
    struct toy_step t;
    struct toy_cache c;
    int ends[5] = {0};
    toy_step_open(&t, &be, &shapes[_i], CAP);
    toy_cache_open(&c, &t, 2, KV_WIDE);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        struct expected want[8];
        int n[8];
        const int with_cells = seed < 12;
        toy_step_fill(&t, seed);
        *t.host_counter = seed;
        t.host.clock[STEP_BEGIN] = 0;
        for (int slot = 0; slot < t.host.trees.slots; slot++) {
            want[slot] = append_all(&t, slot);
            n[slot] = t.host.seq[slot].n;
        }
        if (with_cells)
            toy_cache_fill(&c, &t);
        toy_step_send(&t);
        const struct step_commit a = toy_step_commit(&t, &c);
        ok(be.ops->step_plan(&be, &t.on, t.on.max_rows));
        ok(be.ops->stamp(&be, &t.on.clock[STEP_ACCEPT]));
        ok(be.ops->step_commit(&be, &a));
        toy_step_fetch(&t);
        const struct step_entry e = toy_step_entry(&t, &a, seed);
        EXPECT(e.head->sequence == seed + 1 && *t.host_counter == seed + 1 && t.host.clock[STEP_BEGIN] == 0);
        EXPECT(e.head->rows == t.host.count[0] && e.head->seqs == t.host.count[1]);
        for (int i = 1; i < STEP_CLOCKS; i++)
            EXPECT(e.head->clock[i] >= e.head->clock[i - 1] && e.head->clock[0] > 0);
        check_experts(&t, &e);
        for (int slot = 0; slot < t.host.trees.slots; slot++) {
            if (t.host.first_row[slot] >= 0) {
                check_slot(&t, &e, slot, &want[slot], n[slot]);
                ends[want[slot].end]++;
            } else {
                EXPECT(e.slot[slot].serial == 0 && t.host.seq[slot].n == n[slot]);
            }
            if (with_cells)
                check_cells(&t, &c, slot, n[slot]);
        }
    }
    for (int i = 0; i < 5; i++) /* each way to end, and going on, was seen */
        ck_assert_int_gt(ends[i], 0);
    toy_cache_close(&c, &t);
    toy_step_close(&t);
}
END_TEST

START_TEST(a_step_of_nobody_leaves_an_empty_record)
{
    struct toy_step t;
    struct toy_cache c;
    toy_step_open(&t, &be, &shapes[2], CAP);
    toy_cache_open(&c, &t, 1, KV_WIDE);
    const struct step_commit a = toy_step_commit(&t, &c);
    ok(be.ops->step_plan(&be, &t.on, 5));
    ok(be.ops->step_commit(&be, &a));
    const struct step_entry e = toy_step_entry(&t, &a, 0);
    ck_assert_int_eq(e.head->sequence, 1);
    ck_assert_int_eq(e.head->rows, 0);
    for (int l = 0; l < TOY_MOE_LAYERS; l++)
        ck_assert_int_eq(e.distinct[l], 0);
    for (int slot = 0; slot < 4; slot++)
        ck_assert_int_eq(e.slot[slot].serial, 0);
    toy_cache_close(&c, &t);
    toy_step_close(&t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("step");
    TCase *c = tcase_create("step");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, a_plan_shows_each_row_its_text_and_its_ancestors, 0, SHAPES);
    tcase_add_loop_test(c, a_commit_is_what_appending_token_by_token_leaves, 0, SHAPES);
    tcase_add_test(c, a_step_of_nobody_leaves_an_empty_record);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
