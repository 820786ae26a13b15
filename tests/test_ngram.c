/* The n-gram draft against searches that read the whole text, over random texts of few different tokens. */
#include "drafts/drafts.h"
#include "engine/err.h"
#include "kernels/ngram.h"
#include "tests/expect.h"
#include <stdlib.h>
#include <string.h>

enum { CAP = 80, NODES = 12, DEPTH = 4 };

struct options {
    int min, max, recent, prompt_only, branches;
};

/* A tree of the operation, for a text that may grow by max_depth + 1 tokens. */
static void propose(const struct options *o, const int *tokens, int n, int n_prompt, struct tree *out)
{
    static int token[NODES], parent[NODES], depth[NODES], q_row[NODES];
    static float log_q[NODES];
    int count = -1;
    int64_t begin = 0;
    const struct seq_state seq = {.live = 1,
                                  .n = n,
                                  .n_prompt = n_prompt,
                                  .end = n + out->max_depth + 1,
                                  .context_end = n + out->max_depth + 1};
    const struct trees trees = {1,      out->max_nodes, out->max_depth, &count, token,
                                parent, depth,          log_q,          q_row,  NULL};
    ngram_ref(&(struct ngram){.seq = &seq,
                              .text = tokens,
                              .cap = CAP,
                              .trees = &trees,
                              .min = o->min,
                              .max = o->max,
                              .branches = o->branches,
                              .match = o->recent ? NGRAM_RECENT : NGRAM_FIRST,
                              .scope = o->prompt_only ? NGRAM_PROMPT : NGRAM_ALL,
                              .begin = &begin});
    EXPECT(count >= 0 && count <= out->max_nodes);
    for (out->n = 0; out->n < count; out->n++) {
        const int k = out->n;
        EXPECT(q_row[k] == -1);
        out->nodes[k] =
            (struct tree_node){.token = token[k], .parent = parent[k], .depth = depth[k], .log_q = log_q[k]};
    }
}

static int random_below(uint32_t text, uint32_t i, uint32_t use, int n)
{
    return (int)(philox(11, text, i, use, 0).v[0] % (uint32_t)n);
}

static void random_text(int *tokens, int n, uint32_t id, int alphabet)
{
    for (int i = 0; i < n; i++)
        tokens[i] = random_below(id, (uint32_t)i, 100, alphabet);
}

static int same_ngram(const int *tokens, int end, int other, int size)
{
    return memcmp(tokens + end - size + 1, tokens + other - size + 1, (size_t)size * sizeof *tokens) == 0;
}

/* What the header promises, by reading the text from end to end for every size. */
static void search(const struct options *o, const int *tokens, int n, int n_prompt, struct tree *tree)
{
    int limit = o->prompt_only ? n_prompt : n, left = o->branches;
    for (int size = o->max; size >= o->min; size--) {
        int visits = 0;
        for (int k = 0; k < limit - 1 && left > 0 && visits < 16 * o->branches; k++) {
            int end = o->recent ? limit - 2 - k : k;
            if (size > n || end - size + 1 < 0 || !same_ngram(tokens, end, n - 1, size))
                continue;
            visits++;
            int before = tree->n, node = TREE_ROOT;
            for (int i = end + 1; i < limit && node >= TREE_ROOT; i++) {
                node = tree_add(tree, node, tokens[i], 0, NULL);
                if (node < 0)
                    break;
            }
            left -= tree->n > before;
        }
    }
}

static void assert_same_tree(const struct tree *a, const struct tree *b)
{
    EXPECT(a->n == b->n);
    for (int i = 0; i < a->n; i++) {
        EXPECT(a->nodes[i].token == b->nodes[i].token);
        EXPECT(a->nodes[i].parent == b->nodes[i].parent);
        EXPECT(a->nodes[i].depth == b->nodes[i].depth);
        EXPECT(a->nodes[i].log_q == 0 && !a->nodes[i].q);
    }
}

/* Grow a text in random steps and compare with the search after each; returns how many nodes were proposed.
 */
static int grow_and_compare(const struct options *o, uint32_t id, int alphabet)
{
    int tokens[CAP], proposed = 0;
    random_text(tokens, CAP, id, alphabet);
    const int n_prompt = 1 + random_below(id, 0, 101, CAP / 2);
    struct tree found, expected;
    EXPECT(tree_init(&found, NODES, DEPTH) == 0);
    EXPECT(tree_init(&expected, NODES, DEPTH) == 0);
    int n = n_prompt;
    for (uint32_t step = 0; n < CAP; step++) {
        tree_clear(&expected);
        found.max_depth = expected.max_depth = 1 + random_below(id, step, 102, DEPTH);
        found.max_nodes = expected.max_nodes = random_below(id, step, 103, NODES + 1);
        propose(o, tokens, n, n_prompt, &found);
        search(o, tokens, n, n_prompt, &expected);
        assert_same_tree(&found, &expected);
        proposed += found.n;
        n += 1 + random_below(id, step, 104, 4);
    }
    tree_deinit(&found);
    tree_deinit(&expected);
    return proposed;
}

START_TEST(every_option_gives_what_a_full_search_gives)
{
    int proposed = 0;
    uint32_t id = 0;
    for (int min = 1; min <= 3; min++)
        for (int max = min; max <= 4; max++)
            for (int flags = 0; flags < 4; flags++)
                for (int branches = 1; branches <= 4; branches++) {
                    const struct options o = {min, max, flags & 1, flags >> 1, branches};
                    for (int alphabet = 1; alphabet <= 5; alphabet++, id++)
                        proposed += grow_and_compare(&o, id, alphabet);
                }
    ck_assert_int_gt(proposed, 10000);
}
END_TEST

/* transformers' prompt lookup: sizes from min(max, n - 1) down to 1, the leftmost window with a token after
 * it. */
static int prompt_lookup(const int *tokens, int n, int max, int count, int *out)
{
    for (int size = max < n - 1 ? max : n - 1; size >= 1; size--)
        for (int start = 0; start + size < n; start++)
            if (same_ngram(tokens, start + size - 1, n - 1, size)) {
                int got = 0;
                for (int i = start + size; i < n && got < count; i++)
                    out[got++] = tokens[i];
                return got;
            }
    return 0;
}

/* vLLM's: the longest suffix of at most max tokens that occurs earlier, from the prefix function of the
 * reversed text; of places of that length the earliest. */
static int longest_suffix(const int *tokens, int n, int min, int max, int count, int *out)
{
    int border[CAP] = {0}, best = 0, at = 0, got = 0;
    for (int i = 1, len = 0; i < n; i++) {
        while (len > 0 && tokens[n - 1 - i] != tokens[n - 1 - len])
            len = border[len - 1];
        len += tokens[n - 1 - i] == tokens[n - 1 - len];
        border[i] = len;
        if (len >= best) {
            best = len;
            at = i;
        }
        if (len == max)
            len = border[max - 1];
    }
    if (best < min || best == 0)
        return 0;
    for (int i = n - 1 - at + best; i < n && got < count; i++)
        out[got++] = tokens[i];
    return got;
}

static void assert_chain(const struct tree *t, const int *tokens, int n)
{
    EXPECT(t->n == n);
    for (int i = 0; i < n; i++) {
        EXPECT(t->nodes[i].token == tokens[i]);
        EXPECT(t->nodes[i].parent == i - 1);
    }
}

START_TEST(first_match_is_that_of_transformers_and_vllm)
{
    struct tree t;
    EXPECT(tree_init(&t, DEPTH, DEPTH) == 0);
    int nonempty = 0;
    for (uint32_t id = 0; id < 3000; id++) {
        int tokens[CAP], expected[DEPTH], max = 1 + random_below(id, 0, 105, 4);
        int min = 1 + random_below(id, 0, 106, max), n = 1 + random_below(id, 0, 107, CAP);
        random_text(tokens, n, id + 500, 2 + (int)id % 4);
        for (int vllm = 0; vllm < 2; vllm++) {
            const struct options o = {vllm ? min : 1, max, 0, 0, 1};
            propose(&o, tokens, n, n, &t);
            int count = vllm ? longest_suffix(tokens, n, min, max, DEPTH, expected)
                             : prompt_lookup(tokens, n, max, DEPTH, expected);
            assert_chain(&t, expected, count);
            nonempty += count > 0;
        }
    }
    ck_assert_int_gt(nonempty, 4000);
    tree_deinit(&t);
}
END_TEST

START_TEST(branches_share_prefixes_and_keep_the_order_of_matches)
{
    const struct options o = {1, 2, 0, 0, 3};
    const int tokens[] = {1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 6, 7, 1, 2};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, NODES, 2), 0);
    propose(&o, tokens, 14, 14, &t);
    const int token[] = {3, 4, 5, 6, 7}, parent[] = {-1, 0, 0, -1, 3};
    ck_assert_int_eq(t.n, 5);
    for (int i = 0; i < t.n; i++) {
        ck_assert_int_eq(t.nodes[i].token, token[i]);
        ck_assert_int_eq(t.nodes[i].parent, parent[i]);
    }
    tree_deinit(&t);
}
END_TEST

START_TEST(nothing_is_proposed_where_nothing_fits_or_lives)
{
    const int tokens[] = {1, 2, 3, 1, 2};
    int n[3] = {-1, -1, -1}, token[3 * NODES], parent[3 * NODES], depth[3 * NODES], q_row[3 * NODES];
    float log_q[3 * NODES];
    int64_t begin = 0;
    struct seq_state seq[3]; /* one token left; two; enough, but not live */
    int text[3][5];
    for (int s = 0; s < 3; s++) {
        memcpy(text[s], tokens, sizeof tokens);
        seq[s] = (struct seq_state){.live = s < 2, .n = 5, .n_prompt = 5, .end = 6 + s, .context_end = 9};
    }
    const struct trees trees = {3, NODES, DEPTH, n, token, parent, depth, log_q, q_row, NULL};
    ngram_ref(&(struct ngram){.seq = seq,
                              .text = text[0],
                              .cap = 5,
                              .trees = &trees,
                              .min = 1,
                              .max = 3,
                              .branches = 1,
                              .begin = &begin});
    ck_assert_int_eq(n[0], 0);
    ck_assert_int_eq(n[1], 1);
    ck_assert_int_eq(token[NODES], 3);
    ck_assert_int_eq(n[2], 0);
}
END_TEST

START_TEST(min_above_max_is_an_error_that_says_so)
{
    const double value[] = {3, 2, 0, 0, 1};
    struct draft_env env = {.slots = 1, .cap = CAP, .option = value};
    void *self = &env;
    ck_assert_int_eq(draft_ngram.open(&self, &env), ERR_CONFIG);
    ck_assert_ptr_null(self);
    ck_assert_ptr_nonnull(strstr(err_text(), "min <= max"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("ngram");
    TCase *c = tcase_create("ngram");
    tcase_add_test(c, every_option_gives_what_a_full_search_gives);
    tcase_add_test(c, first_match_is_that_of_transformers_and_vllm);
    tcase_add_test(c, branches_share_prefixes_and_keep_the_order_of_matches);
    tcase_add_test(c, nothing_is_proposed_where_nothing_fits_or_lives);
    tcase_add_test(c, min_above_max_is_an_error_that_says_so);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
