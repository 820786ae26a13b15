/* test_kv: cells of the toy model's cache, filled by forward and compared bit for bit with those of a fresh
 * run. */
#include "engine/err.h"
#include "engine/forward.h"
#include "tests/toy.h"
#include <check.h>
#include <limits.h>
#include <stdlib.h>

enum { CAP = 64, ROWS = 32 };

static struct toy toy;
static struct kv kv;
static struct forward fw;

static void open_all(void)
{
    ck_assert_msg(toy_open(&toy, 1) == 0, "%s", err_text());
    ck_assert_int_eq(kv_init(&kv, &toy.be, &toy.model, 2, CAP), 0);
    ck_assert_int_eq(forward_init(&fw, &toy.model, &kv, ROWS, ROWS), 0);
}

static void close_all(void)
{
    forward_deinit(&fw);
    kv_deinit(&kv);
    toy_close(&toy);
}

static int token_at(int i)
{
    return (i * 31 + 7) % TOY_VOCAB;
}

/* Bytes of key and value of one cell, all layers and heads of a slot, are the same. */
static int same_cell(int slot, int cell, const struct kv *other, int other_slot)
{
    for (int l = 0; l < kv.n_layers; l++) {
        const struct kv_layer *a = &kv.layers[l], *b = &other->layers[l];
        for (int h = 0; h < a->kv_heads; h++)
            for (int d = 0; d < a->head_dim; d++) {
                const float *ka = kv_key(a, slot, h, cell) + (size_t)d * KV_BLOCK;
                const float *kb = kv_key(b, other_slot, h, cell) + (size_t)d * KV_BLOCK;
                const float *va = kv_value(a, slot, h, cell) + d;
                const float *vb = kv_value(b, other_slot, h, cell) + d;
                if (memcmp(ka, kb, sizeof *ka) != 0 || memcmp(va, vb, sizeof *va) != 0)
                    return 0;
            }
    }
    return 1;
}

/* Fill a second cache with tokens from the start and compare cells [0, n). */
static void expect_cells_of_fresh_run(int slot, const int *tokens, int n)
{
    struct kv fresh = {0};
    struct forward f = {0};
    ck_assert_int_eq(kv_init(&fresh, &toy.be, &toy.model, 1, CAP), 0);
    ck_assert_int_eq(forward_init(&f, &toy.model, &fresh, ROWS, 0), 0);
    ck_assert_int_eq(forward_prefill(&f, 0, tokens, n), 0);
    for (int i = 0; i < n; i++)
        ck_assert_msg(same_cell(slot, i, &fresh, 0), "cell %d of %d differs from a fresh run", i, n);
    forward_deinit(&f);
    kv_deinit(&fresh);
}

START_TEST(cells_are_rounded_up_to_blocks_and_counted_in_bytes)
{
    struct kv k = {0};
    ck_assert_int_eq(kv_init(&k, &toy.be, &toy.model, 3, 17), 0);
    ck_assert_int_eq(k.cap, 32);
    ck_assert_int_eq(k.slots, 3);
    ck_assert_uint_eq(k.bytes,
                      2u * 2 * 3 * 32 * 2 * 16 * sizeof(float)); /* k and v, layers, slots, cap, heads, dim */
    kv_deinit(&k);
    kv_deinit(&k);
}
END_TEST

START_TEST(a_closed_cache_gives_its_memory_back)
{
    const size_t before = toy.be.allocated;
    struct kv k = {0};
    ck_assert_int_eq(kv_init(&k, &toy.be, &toy.model, 3, 17), 0);
    ck_assert_uint_eq(toy.be.allocated, before + k.bytes);
    kv_deinit(&k);
    ck_assert_uint_eq(toy.be.allocated, before);
}
END_TEST

START_TEST(an_impossible_size_is_refused_with_a_number)
{
    struct kv k = {.cap = 77};
    ck_assert_int_eq(kv_init(&k, &toy.be, &toy.model, 1, INT_MAX), ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(err_text(), "found 2147483647"));
    ck_assert_int_eq(kv_init(&k, &toy.be, &toy.model, 1 << 24, 1 << 28), ERR_MEMORY);
    ck_assert_ptr_nonnull(strstr(err_text(), "kv: 16777216 slots of 268435456 cells, "));
    ck_assert_int_eq(k.cap, 77); /* written only on success */
}
END_TEST

/* Commit 10 tokens, verify a tree, keep some of its rows: cells must be as if only the kept text had ever
 * run. */
static void check_commit(const struct forward_row *tree, int n, const int *keep, int n_keep)
{
    int text[CAP];
    for (int i = 0; i < 10; i++)
        text[i] = token_at(i);
    ck_assert_int_eq(forward_prefill(&fw, 1, text, 10), 0);
    ck_assert_int_eq(forward_run(&fw, tree, n, FORWARD_LOGITS), 0);
    ck_assert_int_eq(kv.slot[1].committed, 10);
    ck_assert_int_eq(kv.slot[1].used, 10 + n);
    ck_assert_int_eq(kv_commit(&kv, 1, keep, n_keep), 0);
    ck_assert_int_eq(kv.slot[1].committed, 10 + n_keep);
    ck_assert_int_eq(kv.slot[1].used, 10 + n_keep);
    for (int i = 0; i < n_keep; i++)
        text[10 + i] = tree[keep[i]].token;
    expect_cells_of_fresh_run(1, text, 10 + n_keep);
}

static const struct forward_row tree[] = {
    {.token = 5, .slot = 1, .parent = -1}, {.token = 6, .slot = 1, .parent = 0},
    {.token = 7, .slot = 1, .parent = 0},  {.token = 8, .slot = 1, .parent = 1},
    {.token = 9, .slot = 1, .parent = 2},  {.token = 10, .slot = 1, .parent = 4},
    {.token = 11, .slot = 1, .parent = 5}};

START_TEST(commit_restores_every_row_of_an_accepted_path)
{
    check_commit(tree, 7, (const int[]){0, 2, 4, 5, 6}, 5);
}
END_TEST

START_TEST(commit_of_an_unmoved_prefix_keeps_it)
{
    check_commit(tree, 7, (const int[]){0, 1}, 2);
}
END_TEST

START_TEST(commit_of_the_first_rows_then_a_gap_moves_the_rest)
{
    check_commit(tree, 7, (const int[]){0, 1, 3}, 3);
}
END_TEST

START_TEST(commit_of_nothing_is_a_rollback)
{
    check_commit(tree, 7, NULL, 0);
}
END_TEST

START_TEST(rollback_leaves_the_other_slots_alone)
{
    int text[20];
    for (int i = 0; i < 20; i++)
        text[i] = token_at(i + 3);
    ck_assert_int_eq(forward_prefill(&fw, 0, text, 20), 0);
    check_commit(tree, 7, (const int[]){0, 2, 4}, 3);
    ck_assert_int_eq(kv.slot[0].committed, 20);
    expect_cells_of_fresh_run(0, text, 20);
}
END_TEST

START_TEST(a_reset_slot_starts_over)
{
    check_commit(tree, 7, (const int[]){0, 2, 4}, 3);
    kv_reset(&kv, 1);
    ck_assert_int_eq(kv.slot[1].committed, 0);
    ck_assert_int_eq(kv.slot[1].used, 0);
    check_commit(tree, 7, (const int[]){0, 1, 3}, 3);
}
END_TEST

START_TEST(the_comparison_sees_one_wrong_bit)
{
    int text[4] = {1, 2, 3, 4};
    ck_assert_int_eq(forward_prefill(&fw, 0, text, 4), 0);
    ck_assert_int_eq(forward_prefill(&fw, 1, text, 4), 0);
    ck_assert_int_eq(same_cell(0, 3, &kv, 1), 1);
    float *v = kv_value(&kv.layers[1], 1, 1, 3) + 15;
    unsigned char *low = (unsigned char *)v;
    low[0] ^= 1;
    ck_assert_int_eq(same_cell(0, 3, &kv, 1), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("kv");
    TCase *sizes = tcase_create("sizes"), *commits = tcase_create("commits");
    tcase_add_checked_fixture(sizes, open_all, close_all);
    tcase_add_checked_fixture(commits, open_all, close_all);
    tcase_add_test(sizes, cells_are_rounded_up_to_blocks_and_counted_in_bytes);
    tcase_add_test(sizes, a_closed_cache_gives_its_memory_back);
    tcase_add_test(sizes, an_impossible_size_is_refused_with_a_number);
    tcase_add_test(commits, commit_restores_every_row_of_an_accepted_path);
    tcase_add_test(commits, commit_of_an_unmoved_prefix_keeps_it);
    tcase_add_test(commits, commit_of_the_first_rows_then_a_gap_moves_the_rest);
    tcase_add_test(commits, commit_of_nothing_is_a_rollback);
    tcase_add_test(commits, rollback_leaves_the_other_slots_alone);
    tcase_add_test(commits, a_reset_slot_starts_over);
    tcase_add_test(commits, the_comparison_sees_one_wrong_bit);
    suite_add_tcase(s, sizes);
    suite_add_tcase(s, commits);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
