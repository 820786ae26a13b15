/* Attention in chunks on a CUDA device: a row's output is that of the same row in a text which begins where
 * its chunk does, to the bit, for any rows beside it and whichever way it goes. Chunks here end anywhere, in
 * blocks of 64 keys and at their borders; trees and passes of several slots straddle the borders; what all
 * rows are past seeing is NaN, as is what lies ahead. */
#include "tests/cuda_attend.h"
#include "tests/cuda_suite.h"

/* The last row of a launch stands `ahead` positions past a border; what no row sees is NaN. */
static void check_means(int of, int chunk, int n, int ahead)
{
    const int last = 3 * chunk - 1 + ahead, first = last + 1 - n < 0 ? 0 : last + 1 - n;
    struct scene *s = means_scene(of, 2304, attention_first(chunk, first), last + 1);
    uint16_t *out = outputs_new(s);
    s->chunk = chunk;
    for (int p = first; p <= last; p++)
        row_add(s, 1, p);
    scene_upload(s);
    attend(s, 0, s->n, out);
    expect_means(s, out, 0, s->n);
    attend_to(s, 0, s->n, s->cap, out);
    expect_means(s, out, 0, s->n);
    free(out);
    scene_free(s);
}

START_TEST(equal_keys_average_the_values_of_a_chunk_exactly)
{
    static const int chunks[] = {1, 12, 16, 63, 64, 65, 100, 700}, sizes[] = {1, 2, 16, SPLIT, 150};
    for (int c = 0; c < 8; c++)
        for (int i = 0; i < 5; i++)
            for (int ahead = -1; ahead <= 2; ahead++)
                check_means(_i * N_SHAPES + 3, chunks[c], sizes[i], ahead);
}
END_TEST

/* --- trees --- */

struct tree {
    int chunk, committed[SLOTS], n, slots;
};

/* Trees that begin a few positions before a border; n rows of `slots` slots. */
static struct scene *tree_scene(int of, int cap, uint32_t seed, const struct tree *t)
{
    struct scene *s = scene_new(of, cap);
    s->chunk = t->chunk;
    scene_grow_in(s, seed, t->committed, t->n, t->slots);
    scene_forget(s);
    scene_upload(s);
    return s;
}

/* Rows of the first slot on either side of a border, or the tree tests nothing. */
static void expect_border(const struct scene *s)
{
    int before = 0, behind = 0;
    for (int r = 0; r < s->n; r++)
        if (s->slot[r] == 0) {
            before += first_of(s, r) <= s->base[r];
            behind += first_of(s, r) > s->base[r];
        }
    EXPECT_MSG(before && behind, "chunks of %d, trees from %d on: %d rows before the border, %d behind it",
               s->chunk, s->base[0], before, behind);
}

/* All rows in one launch and in many, with the reach they need and with all of the cache. */
static void check_tree(int of, int cap, uint32_t seed, const struct tree *t)
{
    struct scene *s = tree_scene(of, cap, seed, t);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    expect_border(s);
    attend_as_texts(s, of, expected);
    attend(s, 0, s->n, out);
    expect_rows(s, out, expected, s->n, "all rows together", s->n);
    for (int size = 1; size <= SPLIT; size += size < 4 ? 1 : 12) {
        attend_in(s, size, 0, out);
        expect_rows(s, out, expected, s->n, "rows of a tree", size);
        attend_in(s, size, s->cap, out);
        expect_rows(s, out, expected, s->n, "rows of a tree, reach of the cache", size);
    }
    free(out);
    free(expected);
    scene_free(s);
}

START_TEST(a_node_sees_exactly_its_chunk_bit_for_bit)
{
    static const struct tree trees[] = {
        {12, {11, 0, 22}, SPLIT, SLOTS},      {16, {47, 15, 33}, SPLIT, SLOTS},
        {64, {63, 127, 318}, 100, SLOTS},     {100, {98, 199, 5}, 100, SLOTS},
        {700, {699, 1398, 20}, SPLIT, SLOTS}, {12, {47, 0, 0}, 150, 1},
        {100, {298, 0, 0}, SPLIT, 1},
    };
    for (int c = _i % 2; c < 7; c += 2)
        check_tree(_i, 1600, (uint32_t)c, &trees[c]);
}
END_TEST

/* The last row of a launch of 1 to 64, one tree in one slot as a step verifies it. */
START_TEST(any_number_of_rows_up_to_64_gives_the_same_bits)
{
    const struct tree t = {1024, {1022, 0, 0}, SPLIT, 1};
    struct scene *s = tree_scene(_i, 1280, 5, &t);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    expect_border(s);
    attend_in(s, 1, 0, expected);
    for (int n = 2; n <= SPLIT; n++) {
        attend(s, 0, n, out);
        expect_rows(s, out, expected, n, "the first rows of a tree", n);
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* The chunks of the real models, which a cluster takes whole, and longer ones, which it does not. Shapes: one
 * of each head_dim's variant, Maverick's first. */
static void check_long(int of, const struct tree *t, int cap)
{
    static const int sizes[] = {1, 5, 21, SPLIT, 2 * SPLIT};
    struct scene *s = tree_scene(of, cap, 41, t);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    expect_border(s);
    attend_as_texts(s, of, expected);
    for (int i = 0; i < 5; i++) {
        attend_in(s, sizes[i], s->cap, out);
        expect_rows(s, out, expected, s->n, "a long chunk", sizes[i]);
    }
    free(out);
    free(expected);
    scene_free(s);
}

static const int long_shapes[] = {2, 0, 5, 3};

START_TEST(a_chunk_of_8192_positions_is_a_text_of_its_own)
{
    const struct tree t = {8192, {8190, 0, 0}, 2 * SPLIT, 1};
    check_long(long_shapes[_i / 2] + _i % 2 * N_SHAPES, &t, 8704);
}
END_TEST

START_TEST(a_chunk_longer_than_a_cluster_takes_is_a_text_of_its_own)
{
    const struct tree t = {8500, {8498, 0, 0}, 2 * SPLIT, 1};
    check_long(long_shapes[_i / 2] + _i % 2 * N_SHAPES, &t, 9008);
}
END_TEST

/* --- rows of one text --- */

/* Every text position of a launch in order: tiles that hold several chunks, or part of one. */
START_TEST(a_row_of_a_prompt_is_the_same_in_every_batch)
{
    static const int chunks[] = {12, 64, 100, 2048}, sizes[] = {2, 3, 7, 16, 22, SPLIT, 100, MAX_ROWS};
    for (int c = 0; c < 4; c++) {
        struct scene *s = scene_new(_i, 2560);
        uint16_t *out = outputs_new(s), *expected = outputs_new(s);
        s->chunk = chunks[c];
        for (int p = 0; p < 2400; p++)
            cell_set(s, 0, p, p);
        for (int i = 0; i < MAX_ROWS; i++)
            row_add(s, 0, 2000 + i);
        scene_forget(s);
        scene_upload(s);
        attend_as_texts(s, _i, expected);
        for (int i = 0; i < 8; i++) {
            attend_in(s, sizes[i], 0, out);
            expect_rows(s, out, expected, s->n, "a prompt", sizes[i]);
        }
        free(out);
        free(expected);
        scene_free(s);
    }
}
END_TEST

/* Key and value of one cell are NaN: rows of its chunk from there on are NaN, those before it and those of
 * the next chunk keep their bits, also where they share a launch and a block of keys with them. */
START_TEST(a_nan_stays_in_its_chunk)
{
    static const int chunks[] = {64, 100, 250}, sizes[] = {1, 2, 8, 21, SPLIT, 100};
    const int of = _i % 2 * N_SHAPES + 1, chunk = chunks[_i / 2];
    struct scene *s = scene_new(of, 1280);
    const size_t width = (size_t)s->heads * (size_t)s->dim;
    const int border = 2 * chunk, bad = border - 20;
    uint16_t *out = outputs_new(s), *clean = outputs_new(s);
    s->chunk = chunk;
    for (int p = 0; p < border + 50; p++)
        cell_set(s, 0, p, p);
    for (int i = 0; i < 100; i++)
        row_add(s, 0, border - 50 + i);
    attend_as_texts(s, of, clean);
    cache_put(s, 0, at(s, 0, 2, bad), NAN);
    cache_put(s, 1, at(s, 0, 2, bad), NAN);
    scene_upload(s);
    for (int i = 0; i < 6; i++) {
        attend_in(s, sizes[i], 0, out);
        for (int r = 0; r < s->n; r++) {
            const float with = bf16_to_f32(out[(size_t)r * width + 8 * 128]);
            const int sees = s->pos[r] >= bad && s->pos[r] < border;
            EXPECT_MSG((isnan(with) != 0) == sees, "%d rows a launch, position %d of chunks of %d: %g",
                       sizes[i], s->pos[r], chunk, with);
            if (!sees)
                expect_row(s, out, clean, r, "a NaN that others see");
        }
    }
    free(out);
    free(clean);
    scene_free(s);
}
END_TEST

/* Rows of nobody between those of a tree that straddles a border; their positions mean nothing. */
START_TEST(rows_of_nobody_change_nothing)
{
    static const int sizes[] = {1, 2, 5, 16, SPLIT, 2 * SPLIT};
    const struct tree t = {100, {98, 199, 7}, 2 * SPLIT, SLOTS};
    struct scene *s = tree_scene(_i, 640, 9, &t);
    uint16_t *out = outputs_new(s), *expected = outputs_new(s);
    attend_in(s, 1, 0, expected);
    for (int r = 0; r < s->n; r++)
        if (r % 3 == 0 || (r > 15 && r < 50) || r > 120) {
            s->slot[r] = -1;
            s->pos[r] = s->cell[r] = r % 2 ? 0 : 600;
            s->base[r] = s->pos[r] + 1;
        }
    rows_upload(s);
    for (int i = 0; i < 6; i++) {
        attend_in(s, sizes[i], s->cap, out);
        expect_rows(s, out, expected, s->n, "dead rows", sizes[i]);
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* --- the reference --- */

START_TEST(it_is_within_its_bound_of_the_reference)
{
    static const struct tree trees[] = {
        {12, {35, 60, 0}, 24, SLOTS}, {64, {319, 60, 0}, 24, SLOTS}, {100, {298, 99, 0}, 24, SLOTS}};
    struct tree t = trees[_i % 3];
    if (shapes[_i % N_SHAPES].heads * shapes[_i % N_SHAPES].dim > 4000)
        t.n = 8;
    struct scene *s = tree_scene(_i, 400, 77, &t);
    uint16_t *out = outputs_new(s);
    attend(s, 0, s->n, out);
    expect_reference(s, out);
    free(out);
    scene_free(s);
}
END_TEST

START_TEST(it_is_within_its_bound_at_every_border)
{
    static const int chunks[] = {12, 16, 64, 100, 1000};
    for (int c = 0; c < 5; c++) {
        struct scene *s = scene_new(_i * N_SHAPES + 7, 2048);
        s->chunk = chunks[c];
        for (int p = 0; p < 2048; p++)
            cell_set(s, 0, p, p);
        for (int end = chunks[c]; end < 2040 && s->n + 3 <= MAX_ROWS; end += chunks[c])
            for (int d = -1; d <= 1; d++)
                row_add(s, 0, end + d);
        expect_reference_split_and_whole(s);
        scene_free(s);
    }
}
END_TEST

int main(void)
{
    if (cuda_suite_skips("test_cuda_attention_chunks"))
        return CUDA_SUITE_SKIPPED;
    Suite *s = suite_create("cuda_attention_chunks");
    TCase *c = tcase_create("cuda_attention_chunks");
    tcase_add_loop_test(c, equal_keys_average_the_values_of_a_chunk_exactly, 0, 2);
    tcase_add_loop_test(c, a_node_sees_exactly_its_chunk_bit_for_bit, 0, N_CASES);
    tcase_add_loop_test(c, any_number_of_rows_up_to_64_gives_the_same_bits, 0, N_CASES);
    tcase_add_loop_test(c, a_chunk_of_8192_positions_is_a_text_of_its_own, 0, 8);
    tcase_add_loop_test(c, a_chunk_longer_than_a_cluster_takes_is_a_text_of_its_own, 0, 8);
    tcase_add_loop_test(c, a_row_of_a_prompt_is_the_same_in_every_batch, 0, N_CASES);
    tcase_add_loop_test(c, a_nan_stays_in_its_chunk, 0, 6);
    tcase_add_loop_test(c, rows_of_nobody_change_nothing, 0, N_CASES);
    tcase_add_loop_test(c, it_is_within_its_bound_of_the_reference, 0, N_CASES);
    tcase_add_loop_test(c, it_is_within_its_bound_at_every_border, 0, 2);
    suite_add_tcase(s, c);
    return cuda_suite_run(s);
}
