/* test_forward: a row's bits depend on the row and its ancestors alone. Everything is held with == against
 * one text decoded token by token, for each instruction set of this machine. */
#include "engine/err.h"
#include "engine/forward.h"
#include "engine/log.h"
#include "kernels/cpu.h"
#include "kernels/philox.h"
#include "tests/toy.h"
#include <check.h>
#include <stdlib.h>

enum { TEXT = 96, CAP = 160, ROWS = 64, SLOTS = 3 };

/* A model, a cache and a pass on one backend. */
struct rig {
    struct backend be;
    struct model model;
    struct kv kv;
    struct forward fw;
};

static struct rig rig;
static float reference[TEXT][TOY_VOCAB];

static uint32_t noise(int use, int i)
{
    return philox(7, (uint32_t)use, (uint32_t)i, PHILOX_SYNTHETIC, 0).v[0];
}

static int token_at(int i)
{
    return (int)(noise(1, i) % TOY_VOCAB);
}

static int rig_open(struct rig *r, const char *isa, int threads)
{
    const struct backend_opts opts = {.threads = threads, .isa = isa};
    const struct model_config cfg = toy_config();
    TRY(backend_open(&r->be, "cpu", &opts));
    TRY(model_synthetic(&r->model, &r->be, &cfg, TOY_SEED, NULL));
    TRY(kv_init(&r->kv, &r->be, &r->model, SLOTS, CAP));
    return forward_init(&r->fw, &r->model, &r->kv, ROWS, ROWS);
}

static void rig_close(struct rig *r)
{
    forward_deinit(&r->fw);
    kv_deinit(&r->kv);
    model_deinit(&r->model);
    backend_close(&r->be);
}

/* Run one token of a slot and commit it; its logits are row 0 afterwards. */
static void decode(struct rig *r, int slot, int token)
{
    const struct forward_row row = {.token = token, .slot = slot, .parent = -1};
    ck_assert_msg(forward_run(&r->fw, &row, 1, FORWARD_LOGITS) == 0, "%s", err_text());
    ck_assert_int_eq(kv_commit(&r->kv, slot, (const int[]){0}, 1), 0);
}

static void expect_row(const struct rig *r, int row, const float *want, const char *what, int n)
{
    ck_assert_msg(memcmp(r->fw.logits + (size_t)row * TOY_VOCAB, want, TOY_VOCAB * sizeof *want) == 0,
                  "%s: row %d of %d differs (%s)", what, row, n, r->be.isa);
}

/* Chain of text[from..from + n) in one pass; every row must have the reference's bits. */
static void run_chain(struct rig *r, int slot, int from, int n)
{
    struct forward_row rows[ROWS] = {{.token = 0}};
    int keep[ROWS];
    for (int i = 0; i < n; i++) {
        rows[i] = (struct forward_row){.token = token_at(from + i), .slot = slot, .parent = i - 1};
        keep[i] = i;
    }
    ck_assert_msg(forward_run(&r->fw, rows, n, FORWARD_LOGITS) == 0, "%s", err_text());
    for (int i = 0; i < n; i++)
        expect_row(r, i, reference[from + i], "chain", n);
    ck_assert_int_eq(kv_commit(&r->kv, slot, keep, n), 0);
}

static void fill_reference(void)
{
    for (int i = 0; i < TEXT; i++) {
        decode(&rig, 0, token_at(i));
        memcpy(reference[i], rig.fw.logits, sizeof reference[i]);
    }
    kv_reset(&rig.kv, 0);
}

/* Check runs the fixture in each test's own process; _i is not known to it, so tests open their rig
 * themselves. */
static void open_isa(int i)
{
    log_set_level(LOG_WARN);
    ck_assert_msg(rig_open(&rig, cpu_kernels_at(i)->name, 1) == 0, "%s", err_text());
    fill_reference();
}

static void close_rig(void)
{
    rig_close(&rig);
}

START_TEST(one_to_64_rows_in_a_pass_give_the_same_bits)
{
    open_isa(_i);
    for (int n = 1; n <= ROWS; n++) {
        kv_reset(&rig.kv, 0);
        run_chain(&rig, 0, 0, n);
    }
}
END_TEST

START_TEST(any_split_of_a_text_gives_the_same_bits)
{
    open_isa(_i);
    for (int round = 0; round < 20; round++) {
        kv_reset(&rig.kv, 0);
        for (int at = 0, n; at < TEXT; at += n) {
            n = 1 + (int)(noise(100 + round, at) % 40);
            n = n < TEXT - at ? n : TEXT - at;
            run_chain(&rig, 0, at, n);
        }
    }
}
END_TEST

START_TEST(prefill_gives_the_same_bits_as_decoding)
{
    int text[TEXT];
    open_isa(_i);
    for (int i = 0; i < TEXT; i++)
        text[i] = token_at(i);
    for (int n = 1; n < TEXT; n += 7) {
        kv_reset(&rig.kv, 0);
        ck_assert_int_eq(forward_prefill(&rig.fw, 0, text, n), 0);
        ck_assert_int_eq(rig.kv.slot[0].committed, n);
        ck_assert_int_eq(rig.kv.slot[0].used, n);
        run_chain(&rig, 0, n, TEXT - n < 9 ? TEXT - n : 9);
    }
}
END_TEST

/* A random tree after `committed` tokens: parents before children, several roots. */
static void make_tree(struct forward_row *rows, int n, int slot, int salt)
{
    for (int i = 0; i < n; i++) {
        const int parent = (int)(noise(200 + salt, i) % (unsigned)(i + 2)) - 1;
        rows[i] = (struct forward_row){.token = (int)(noise(300 + salt, i) % TOY_VOCAB),
                                       .slot = slot,
                                       .parent = parent < i ? parent : -1};
    }
}

/* Logits of node i when its ancestors are decoded one after the other in another slot. */
static void decode_path(const struct forward_row *rows, int i, int slot, int committed, float *out)
{
    int path[ROWS], n = 0;
    for (int j = i; j >= 0; j = rows[j].parent)
        path[n++] = rows[j].token;
    kv_reset(&rig.kv, slot);
    for (int j = 0; j < committed; j++)
        decode(&rig, slot, token_at(j));
    while (n > 0)
        decode(&rig, slot, path[--n]);
    memcpy(out, rig.fw.logits, TOY_VOCAB * sizeof *out);
}

START_TEST(a_tree_row_has_the_bits_of_its_chain)
{
    enum { NODES = 24, COMMITTED = 21 };
    struct forward_row rows[NODES];
    float tree[NODES][TOY_VOCAB], chain[TOY_VOCAB];
    open_isa(_i);
    for (int salt = 0; salt < 3; salt++) {
        kv_reset(&rig.kv, 0);
        run_chain(&rig, 0, 0, COMMITTED);
        make_tree(rows, NODES, 0, salt);
        ck_assert_int_eq(forward_run(&rig.fw, rows, NODES, FORWARD_LOGITS), 0);
        memcpy(tree, rig.fw.logits, sizeof tree);
        for (int i = 0; i < NODES; i++) {
            decode_path(rows, i, 1, COMMITTED, chain);
            ck_assert_msg(memcmp(tree[i], chain, sizeof chain) == 0,
                          "tree %d: node %d differs from its chain", salt, i);
        }
    }
}
END_TEST

START_TEST(passes_may_follow_each_other_before_a_commit)
{
    float first[TOY_VOCAB], chain[TOY_VOCAB];
    const struct forward_row a[] = {{.token = 3, .slot = 0, .parent = -1},
                                    {.token = 4, .slot = 0, .parent = 0}};
    const struct forward_row b[] = {{.token = 8, .slot = 0, .parent = -1},
                                    {.token = 9, .slot = 0, .parent = 0}};
    open_isa(_i);
    run_chain(&rig, 0, 0, 18);
    ck_assert_int_eq(forward_run(&rig.fw, a, 2, FORWARD_LOGITS), 0);
    ck_assert_int_eq(forward_run(&rig.fw, b, 2, FORWARD_LOGITS), 0);
    ck_assert_int_eq(rig.kv.slot[0].used, 22);
    memcpy(first, rig.fw.logits + TOY_VOCAB, sizeof first);
    decode_path(b, 1, 1, 18, chain);
    ck_assert_mem_eq(first, chain, sizeof chain);
    ck_assert_int_eq(kv_commit(&rig.kv, 0, (const int[]){2, 3}, 2), 0);
    decode(&rig, 0, 11);
    decode(&rig, 1, 11);
    memcpy(first, rig.fw.logits, sizeof first);
    kv_reset(&rig.kv, 2);
    for (int i = 0; i < 18; i++)
        decode(&rig, 2, token_at(i));
    decode(&rig, 2, 8);
    decode(&rig, 2, 9);
    decode(&rig, 2, 11);
    expect_row(&rig, 0, first, "after commit", 1);
}
END_TEST

START_TEST(slots_in_one_pass_do_not_see_each_other)
{
    struct forward_row rows[ROWS] = {{.token = 0}};
    int where[SLOTS][ROWS], n = 0, last[SLOTS] = {-1, -1, -1}, count[SLOTS] = {0};
    const int start[SLOTS] = {5, 33, 0};
    open_isa(_i);
    for (int s = 0; s < SLOTS; s++)
        if (start[s])
            run_chain(&rig, s, 0, start[s]);
    while (n < 40) {
        const int s = (int)(noise(4, n) % SLOTS);
        rows[n] = (struct forward_row){.token = token_at(start[s] + count[s]), .slot = s, .parent = last[s]};
        last[s] = where[s][count[s]++] = n;
        n++;
    }
    ck_assert_int_eq(forward_run(&rig.fw, rows, n, FORWARD_LOGITS), 0);
    for (int s = 0; s < SLOTS; s++) {
        ck_assert_int_gt(count[s], 0);
        for (int i = 0; i < count[s]; i++)
            expect_row(&rig, where[s][i], reference[start[s] + i], "mixed slots", n);
    }
}
END_TEST

START_TEST(one_and_two_threads_give_the_same_bits)
{
    struct rig two = {.be = {.ops = NULL}};
    open_isa(_i);
    ck_assert_int_eq(rig_open(&two, rig.be.isa, 2), 0);
    run_chain(&two, 0, 0, 1);
    run_chain(&two, 0, 1, 2);
    run_chain(&two, 0, 3, 64);
    run_chain(&two, 0, 67, TEXT - 67);
    rig_close(&two);
}
END_TEST

START_TEST(statistics_are_those_of_the_row)
{
    struct forward_row rows[8];
    struct logit_stats want;
    open_isa(_i);
    make_tree(rows, 8, 0, 9);
    ck_assert_int_eq(forward_run(&rig.fw, rows, 8, FORWARD_LOGITS | FORWARD_ENTROPY), 0);
    for (int r = 0; r < 8; r++) {
        logits_ref(&(struct logits){.logits = rig.fw.logits + (size_t)r * TOY_VOCAB,
                                    .out = &want,
                                    .rows = 1,
                                    .vocab = TOY_VOCAB,
                                    .threads = 1,
                                    .with_entropy = 1});
        ck_assert_int_eq(rig.fw.stats[r].argmax, want.argmax);
        ck_assert_float_eq(rig.fw.stats[r].max, want.max);
        ck_assert_float_eq(rig.fw.stats[r].second, want.second);
        ck_assert_float_gt(rig.fw.stats[r].entropy, 0);
    }
    kv_reset(&rig.kv, 0);
    ck_assert_int_eq(forward_run(&rig.fw, rows, 8, FORWARD_LOGITS), 0);
    ck_assert_float_eq(rig.fw.stats[7].entropy, 0);
}
END_TEST

START_TEST(another_token_or_position_gives_other_bits)
{
    float first[TOY_VOCAB];
    open_isa(0);
    run_chain(&rig, 0, 0, 10);
    decode(&rig, 0, 5);
    memcpy(first, rig.fw.logits, sizeof first);
    run_chain(&rig, 1, 0, 10);
    decode(&rig, 1, 6);
    ck_assert_mem_ne(rig.fw.logits, first, sizeof first);
    run_chain(&rig, 2, 0, 9);
    decode(&rig, 2, 5);
    ck_assert_mem_ne(rig.fw.logits, first, sizeof first);
}
END_TEST

/* Records how many rows each pass had; the rest is the CPU. */
static struct backend_ops spy;
static int seen[16], n_seen;

static int spy_embed(struct backend *be, const struct embed *a)
{
    seen[n_seen++] = a->rows;
    return backend_cpu.embed(be, a);
}

START_TEST(prefill_blocks_end_at_multiples_of_max_rows)
{
    int text[CAP] = {0};
    const int blocks[] = {10, 54, 64, 20};
    open_isa(0);
    spy = backend_cpu;
    spy.embed = spy_embed;
    rig.be.ops = &spy;
    ck_assert_int_eq(forward_prefill(&rig.fw, 0, text, 10), 0);
    ck_assert_int_eq(forward_prefill(&rig.fw, 0, text, 138), 0);
    ck_assert_int_eq(forward_prefill(&rig.fw, 0, text, 0), 0);
    ck_assert_int_eq(n_seen, 4);
    ck_assert_mem_eq(seen, blocks, sizeof blocks);
}
END_TEST

static int failing_attention(struct backend *be, const struct attention *a)
{
    (void)be;
    (void)a;
    return ERR_SET(ERR_DEVICE, "planted");
}

START_TEST(a_failed_pass_leaves_the_cache_as_it_was)
{
    const struct forward_row row = {.token = 1, .slot = 0, .parent = -1};
    open_isa(0);
    run_chain(&rig, 0, 0, 10);
    spy = backend_cpu;
    spy.attention = failing_attention;
    rig.be.ops = &spy;
    ck_assert_int_eq(forward_run(&rig.fw, &row, 1, FORWARD_LOGITS), ERR_DEVICE);
    ck_assert_int_eq(rig.kv.slot[0].used, 10);
    rig.be.ops = &backend_cpu;
    run_chain(&rig, 0, 10, 5);
}
END_TEST

static void expect_refused(const struct forward_row *rows, int n, unsigned flags, const char *sentence)
{
    const struct kv_slot before = rig.kv.slot[0];
    ck_assert_int_eq(forward_run(&rig.fw, rows, n, flags), ERR_LIMIT);
    ck_assert_msg(strstr(err_text(), sentence) != NULL, "expected '%s' in:\n%s", sentence, err_text());
    ck_assert_int_eq(rig.kv.slot[0].used, before.used);
    ck_assert_int_eq(rig.kv.slot[0].committed, before.committed);
}

START_TEST(what_does_not_fit_is_refused_before_anything_changes)
{
    struct forward_row rows[ROWS + 1] = {{.token = 0}};
    struct kv small = {.be = NULL};
    struct forward few = {.model = NULL};
    int text[CAP] = {0};
    open_isa(0);
    for (int i = 0; i <= ROWS; i++)
        rows[i].parent = -1;
    expect_refused(rows, 0, FORWARD_PREFILL, "expected 1 to 64 rows in a pass, found 0");
    expect_refused(rows, ROWS + 1, FORWARD_PREFILL, "expected 1 to 64 rows in a pass, found 65");
    rows[1].token = TOY_VOCAB;
    expect_refused(rows, 2, FORWARD_LOGITS, "row 1: expected a token from 0 to 96, found 97");
    rows[1].token = -1;
    expect_refused(rows, 2, FORWARD_LOGITS, "row 1: expected a token from 0 to 96, found -1");
    rows[1].token = 0;
    ck_assert_int_eq(forward_prefill(&rig.fw, 0, text, CAP - 1), 0);
    expect_refused(rows, 2, FORWARD_LOGITS, "row 1: the cache of slot 0 is full: it has 160 cells");
    rig.model.cfg.max_positions = CAP - 1;
    expect_refused(rows, 1, FORWARD_LOGITS,
                   "row 0: expected a position below the model's context of 159, found 159");
    ck_assert_int_eq(kv_init(&small, &rig.be, &rig.model, 1, 32), 0);
    ck_assert_int_eq(forward_init(&few, &rig.model, &small, 8, 2), 0);
    ck_assert_int_eq(forward_run(&few, rows, 3, FORWARD_LOGITS), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "expected 1 to 2 rows in a pass with logits, found 3"));
    ck_assert_int_eq(forward_run(&few, rows, 3, FORWARD_PREFILL), 0);
    forward_deinit(&few);
    kv_deinit(&small);
    ck_assert_int_eq(forward_init(&few, &rig.model, &rig.kv, 0, 0), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "expected 1 to 8192 rows a pass, found 0"));
}
END_TEST

START_TEST(a_pass_allocates_nothing_and_deinit_returns_all)
{
    open_isa(0);
    const size_t before = rig.be.allocated;
    run_chain(&rig, 0, 0, ROWS);
    ck_assert_uint_eq(rig.be.allocated, before);
    forward_deinit(&rig.fw);
    forward_deinit(&rig.fw);
    kv_deinit(&rig.kv);
    model_deinit(&rig.model);
    ck_assert_uint_eq(rig.be.allocated, 0);
}
END_TEST

int main(void)
{
    int isas = 0;
    while (cpu_kernels_at(isas))
        isas++;
    Suite *s = suite_create("forward");
    TCase *bits = tcase_create("bits"), *rules = tcase_create("rules");
    tcase_add_checked_fixture(bits, NULL, close_rig);
    tcase_add_checked_fixture(rules, NULL, close_rig);
    tcase_add_loop_test(bits, one_to_64_rows_in_a_pass_give_the_same_bits, 0, isas);
    tcase_add_loop_test(bits, any_split_of_a_text_gives_the_same_bits, 0, isas);
    tcase_add_loop_test(bits, prefill_gives_the_same_bits_as_decoding, 0, isas);
    tcase_add_loop_test(bits, a_tree_row_has_the_bits_of_its_chain, 0, isas);
    tcase_add_loop_test(bits, passes_may_follow_each_other_before_a_commit, 0, isas);
    tcase_add_loop_test(bits, slots_in_one_pass_do_not_see_each_other, 0, isas);
    tcase_add_loop_test(bits, one_and_two_threads_give_the_same_bits, 0, isas);
    tcase_add_loop_test(bits, statistics_are_those_of_the_row, 0, isas);
    tcase_add_test(rules, another_token_or_position_gives_other_bits);
    tcase_add_test(rules, prefill_blocks_end_at_multiples_of_max_rows);
    tcase_add_test(rules, a_failed_pass_leaves_the_cache_as_it_was);
    tcase_add_test(rules, what_does_not_fit_is_refused_before_anything_changes);
    tcase_add_test(rules, a_pass_allocates_nothing_and_deinit_returns_all);
    suite_add_tcase(s, bits);
    suite_add_tcase(s, rules);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
