/* The n-gram draft against searches that read the whole text, over random texts of few different tokens. */
#include "drafts/drafts.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include "tests/expect.h"
#include <stdlib.h>
#include <string.h>

enum { CAP = 80, NODES = 12, DEPTH = 4 };

struct options {
    int min, max, recent, prompt_only, branches;
};

static void *open_ngram(const struct options *o, int slots)
{
    const double value[] = {o->min, o->max, o->recent, o->prompt_only, o->branches};
    struct draft_env env = {
        .slots = slots, .cap = CAP, .vocab = 10, .max_depth = DEPTH, .max_nodes = NODES, .option = value};
    void *self = NULL;
    ck_assert_int_eq(draft_ngram.open(&self, &env), 0);
    return self;
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
static int grow_and_compare(void *self, int slot, const struct options *o, uint32_t id, int alphabet)
{
    int tokens[CAP], proposed = 0;
    random_text(tokens, CAP, id, alphabet);
    struct draft_text text = {slot, id, tokens, 0, 0};
    text.n = text.n_prompt = 1 + random_below(id, 0, 101, CAP / 2);
    struct tree found, expected;
    EXPECT(tree_init(&found, NODES, DEPTH) == 0);
    EXPECT(tree_init(&expected, NODES, DEPTH) == 0);
    EXPECT(draft_ngram.begin(self, &text) == 0);
    for (uint32_t step = 0; text.n < CAP; step++) {
        tree_clear(&found);
        tree_clear(&expected);
        found.max_depth = expected.max_depth = 1 + random_below(id, step, 102, DEPTH);
        found.max_nodes = expected.max_nodes = random_below(id, step, 103, NODES + 1);
        EXPECT(draft_ngram.propose(self, &text, 1, &found) == 0);
        search(o, tokens, text.n, text.n_prompt, &expected);
        assert_same_tree(&found, &expected);
        proposed += found.n;
        int more = 1 + random_below(id, step, 104, 4);
        text.n = text.n + more < CAP ? text.n + more : CAP;
        struct draft_seen seen = {text, more, more - 1, NULL};
        EXPECT(draft_ngram.observe(self, &seen, 1) == 0);
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
                    struct options o = {min, max, flags & 1, flags >> 1, branches};
                    void *self = open_ngram(&o, 2);
                    for (int alphabet = 1; alphabet <= 5; alphabet++, id++)
                        proposed += grow_and_compare(self, (int)(id % 2), &o, id, alphabet);
                    draft_ngram.close(self);
                }
    ck_assert_int_gt(proposed, 10000);
}
END_TEST

START_TEST(a_grown_index_equals_one_built_at_once)
{
    struct options o = {1, 3, 0, 0, 3};
    void *grown = open_ngram(&o, 1);
    int tokens[CAP];
    random_text(tokens, CAP, 7, 3);
    struct draft_text text = {0, 7, tokens, 5, 5};
    struct tree a, b;
    ck_assert_int_eq(tree_init(&a, NODES, DEPTH), 0);
    ck_assert_int_eq(tree_init(&b, NODES, DEPTH), 0);
    ck_assert_int_eq(draft_ngram.begin(grown, &text), 0);
    for (text.n = 6; text.n < CAP; text.n++) {
        struct draft_seen seen = {text, 1, 0, NULL};
        ck_assert_int_eq(draft_ngram.observe(grown, &seen, 1), 0);
        void *built = open_ngram(&o, 1);
        ck_assert_int_eq(draft_ngram.begin(built, &text), 0);
        tree_clear(&a);
        tree_clear(&b);
        ck_assert_int_eq(draft_ngram.propose(grown, &text, 1, &a), 0);
        ck_assert_int_eq(draft_ngram.propose(built, &text, 1, &b), 0);
        assert_same_tree(&a, &b);
        draft_ngram.close(built);
    }
    draft_ngram.close(grown);
    tree_deinit(&a);
    tree_deinit(&b);
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
        struct draft_text text = {0, id, tokens, n, n};
        for (int vllm = 0; vllm < 2; vllm++) {
            struct options o = {vllm ? min : 1, max, 0, 0, 1};
            void *self = open_ngram(&o, 1);
            EXPECT(draft_ngram.begin(self, &text) == 0);
            tree_clear(&t);
            EXPECT(draft_ngram.propose(self, &text, 1, &t) == 0);
            int count = vllm ? longest_suffix(tokens, n, min, max, DEPTH, expected)
                             : prompt_lookup(tokens, n, max, DEPTH, expected);
            assert_chain(&t, expected, count);
            nonempty += count > 0;
            draft_ngram.close(self);
        }
    }
    ck_assert_int_gt(nonempty, 4000);
    tree_deinit(&t);
}
END_TEST

START_TEST(branches_share_prefixes_and_keep_the_order_of_matches)
{
    struct options o = {1, 2, 0, 0, 3};
    void *self = open_ngram(&o, 1);
    int tokens[] = {1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 6, 7, 1, 2};
    struct draft_text text = {0, 0, tokens, 14, 14};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, NODES, 2), 0);
    ck_assert_int_eq(draft_ngram.begin(self, &text), 0);
    ck_assert_int_eq(draft_ngram.propose(self, &text, 1, &t), 0);
    const int token[] = {3, 4, 5, 6, 7}, parent[] = {-1, 0, 0, -1, 3};
    ck_assert_int_eq(t.n, 5);
    for (int i = 0; i < t.n; i++) {
        ck_assert_int_eq(t.nodes[i].token, token[i]);
        ck_assert_int_eq(t.nodes[i].parent, parent[i]);
    }
    tree_deinit(&t);
    draft_ngram.close(self);
}
END_TEST

START_TEST(a_slot_forgets_the_text_before)
{
    struct options o = {1, 3, 0, 0, 1};
    void *self = open_ngram(&o, 1);
    int old[] = {1, 2, 3, 1, 2}, new[] = {1, 2};
    struct draft_text a = {0, 0, old, 5, 5}, b = {0, 1, new, 2, 2};
    struct tree t;
    ck_assert_int_eq(tree_init(&t, NODES, DEPTH), 0);
    ck_assert_int_eq(draft_ngram.begin(self, &a), 0);
    ck_assert_int_eq(draft_ngram.propose(self, &a, 1, &t), 0);
    ck_assert_int_eq(t.n, 3);
    tree_clear(&t);
    ck_assert_int_eq(draft_ngram.begin(self, &b), 0);
    ck_assert_int_eq(draft_ngram.propose(self, &b, 1, &t), 0);
    ck_assert_int_eq(t.n, 0);
    tree_deinit(&t);
    draft_ngram.close(self);
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
    tcase_add_test(c, a_grown_index_equals_one_built_at_once);
    tcase_add_test(c, first_match_is_that_of_transformers_and_vllm);
    tcase_add_test(c, branches_share_prefixes_and_keep_the_order_of_matches);
    tcase_add_test(c, a_slot_forgets_the_text_before);
    tcase_add_test(c, min_above_max_is_an_error_that_says_so);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
