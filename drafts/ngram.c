/* ngram: the text repeats itself. The last tokens are looked up in the text before them, the longest n-gram
 * first, and what followed there is the draft. With `match: first` and one branch this is prompt lookup as
 * transformers (min 1) and vLLM do it: the earliest place with a token after it, its continuation cut at the
 * end of the text. (transformers also cuts at an end-of-text token; here the loop ends the answer there.)
 * With more branches further places follow, then shorter n-grams, until so many have added nodes to the tree;
 * of each size at most 16 places a branch are looked at.
 *
 * Every n-gram that has a token after it stands in a hash table with its first and last place; its places are
 * a linked list in the order of `match`. A new token costs O(max) whatever the length of the text, and a new
 * request forgets the table in O(1). */
#include "drafts/drafts.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

enum { SIZE_MAX_NGRAM = 32, BRANCHES_MAX = 64, VISITS_A_BRANCH = 16 };
enum { OPT_MIN, OPT_MAX, OPT_MATCH, OPT_SCOPE, OPT_BRANCHES };
enum { MATCH_FIRST, MATCH_RECENT };
enum { SCOPE_ALL, SCOPE_PROMPT };

static const char *const match_words[] = {"first", "recent", NULL};
static const char *const scope_words[] = {"all", "prompt", NULL};
static const struct draft_option ngram_options[] = {
    [OPT_MIN] = {"min", "shortest n-gram to look up", 1, 1, SIZE_MAX_NGRAM, 1, NULL},
    [OPT_MAX] = {"max", "longest n-gram, looked up first", 3, 1, SIZE_MAX_NGRAM, 1, NULL},
    [OPT_MATCH] = {"match", "which of several places: the first or the most recent", 0, 0, 1, 1, match_words},
    [OPT_SCOPE] = {"scope", "where to look: all of the text, or the prompt alone", 0, 0, 1, 1, scope_words},
    [OPT_BRANCHES] = {"branches", "different continuations to propose, more than 1 makes a tree", 1, 1,
                      BRANCHES_MAX, 1, NULL},
    {0},
};

/* An n-gram of the text, named by the position of its last token ("end"). Valid when stamp is the index's. */
struct entry {
    uint32_t stamp;
    int size, first, last; /* first and last end */
};

/* The n-grams of one slot's text with ends [0, indexed). */
struct ngram_index {
    struct entry *table; /* [mask + 1], open addressing, at most half full */
    int *link;           /* [sizes, cap]: the next end of the same n-gram in the order of `match`, -1: none */
    uint32_t stamp;      /* of the current text */
    int indexed;
};

struct ngram {
    int min, max, match, scope, branches, cap, slots;
    size_t mask;
    struct ngram_index *index; /* owned [slots] */
    struct entry *entries;     /* owned [slots, mask + 1] */
    int *links;                /* owned [slots, sizes, cap] */
};

static void ngram_close(void *self)
{
    struct ngram *g = self;
    if (!g)
        return;
    free(g->index);
    free(g->entries);
    free(g->links);
    free(g);
}

static int ngram_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    int min = (int)env->option[OPT_MIN], max = (int)env->option[OPT_MAX];
    if (min > max)
        FAIL(ERR_CONFIG, "draft 'ngram': expected min <= max, found min %d and max %d", min, max);
    size_t slots = (size_t)env->slots, cap = (size_t)env->cap, sizes = (size_t)(max - min + 1), table = 64;
    while (table < 2 * cap * sizes)
        table *= 2;
    struct ngram *g = calloc(1, sizeof *g);
    if (g) {
        *g = (struct ngram){.min = min,
                            .max = max,
                            .match = (int)env->option[OPT_MATCH],
                            .scope = (int)env->option[OPT_SCOPE],
                            .branches = (int)env->option[OPT_BRANCHES],
                            .cap = env->cap,
                            .slots = env->slots,
                            .mask = table - 1,
                            .index = calloc(slots, sizeof *g->index),
                            .entries = calloc(slots * table, sizeof *g->entries),
                            .links = calloc(slots * sizes * cap, sizeof *g->links)};
    }
    if (!g || !g->index || !g->entries || !g->links) {
        ngram_close(g);
        FAIL(ERR_MEMORY, "draft 'ngram': out of memory for an index of %d texts of %d tokens, %zu bytes",
             env->slots, env->cap, slots * (table * sizeof *g->entries + sizes * cap * sizeof *g->links));
    }
    for (size_t i = 0; i < slots; i++)
        g->index[i] =
            (struct ngram_index){.table = g->entries + i * table, .link = g->links + i * sizes * cap};
    *self = g;
    return 0;
}

/* A hash of an n-gram grows from its last token backwards, so that one pass hashes all sizes. */
static uint64_t hash_more(uint64_t h, int token)
{
    h = (h ^ (uint64_t)(uint32_t)token) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

/* The entry of the n-gram of `size` tokens that ends at tokens[end], or the free one where it would stand. */
static struct entry *find(const struct ngram *g, const struct ngram_index *x, const int *tokens, int end,
                          int size, uint64_t hash)
{
    size_t bytes = (size_t)size * sizeof *tokens;
    for (size_t at = (size_t)(hash >> 16) & g->mask;; at = (at + 1) & g->mask) {
        struct entry *e = &x->table[at];
        if (e->stamp != x->stamp)
            return e;
        if (e->size == size && memcmp(&tokens[e->first - size + 1], &tokens[end - size + 1], bytes) == 0)
            return e;
    }
}

static int *link_of(const struct ngram *g, const struct ngram_index *x, int size, int end)
{
    return &x->link[(size_t)(size - g->min) * (size_t)g->cap + (size_t)end];
}

static void add_end(const struct ngram *g, struct ngram_index *x, const int *tokens, int end)
{
    uint64_t hash = 0;
    for (int size = 1; size <= g->max && size <= end + 1; size++) {
        hash = hash_more(hash, tokens[end - size + 1]);
        if (size < g->min)
            continue;
        struct entry *e = find(g, x, tokens, end, size, hash);
        int is_new = e->stamp != x->stamp;
        int *link = link_of(g, x, size, end);
        *link = -1;
        if (is_new)
            *e = (struct entry){.stamp = x->stamp, .size = size, .first = end};
        else if (g->match == MATCH_FIRST)
            *link_of(g, x, size, e->last) = end;
        else
            *link = e->last;
        e->last = end;
    }
}

/* Tokens of the text that may be looked up and proposed. */
static int searched(const struct ngram *g, const struct draft_text *text)
{
    return g->scope == SCOPE_PROMPT ? text->n_prompt : text->n;
}

/* Every n-gram that has a token after it: the last token of the searched text ends none. */
static void extend(const struct ngram *g, const struct draft_text *text)
{
    struct ngram_index *x = &g->index[text->slot];
    for (; x->indexed < searched(g, text) - 1; x->indexed++)
        add_end(g, x, text->tokens, x->indexed);
}

static int ngram_begin(void *self, const struct draft_text *text)
{
    struct ngram *g = self;
    struct ngram_index *x = &g->index[text->slot];
    if (++x->stamp == 0) { /* after 2^32 texts a stale entry could look valid */
        memset(x->table, 0, (g->mask + 1) * sizeof *x->table);
        x->stamp = 1;
    }
    x->indexed = 0;
    extend(g, text);
    return 0;
}

static int ngram_observe(void *self, const struct draft_seen *seen, int n)
{
    for (int i = 0; i < n; i++)
        extend(self, &seen[i].text);
    return 0;
}

/* Add what follows the place; 1 when the tree grew, 0 when it held all of it already or is full. */
static int add_continuation(struct tree *tree, const int *tokens, int end, int limit)
{
    int before = tree->n, node = TREE_ROOT;
    for (int i = end + 1; i < limit; i++) {
        node = tree_add(tree, node, tokens[i], 0.0f, NULL);
        if (node < 0)
            break;
    }
    return tree->n > before;
}

static void propose_one(const struct ngram *g, const struct draft_text *text, struct tree *tree)
{
    const struct ngram_index *x = &g->index[text->slot];
    uint64_t hash[SIZE_MAX_NGRAM + 1] = {0};
    int longest = g->max < text->n ? g->max : text->n, left = g->branches;
    for (int size = 1; size <= longest; size++)
        hash[size] = hash_more(hash[size - 1], text->tokens[text->n - size]);
    for (int size = longest; size >= g->min && left > 0; size--) {
        const struct entry *e = find(g, x, text->tokens, text->n - 1, size, hash[size]);
        if (e->stamp != x->stamp)
            continue;
        int end = g->match == MATCH_FIRST ? e->first : e->last;
        for (int visit = 0; end >= 0 && left > 0 && visit < VISITS_A_BRANCH * g->branches; visit++) {
            left -= add_continuation(tree, text->tokens, end, searched(g, text));
            end = *link_of(g, x, size, end);
        }
    }
}

static int ngram_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    for (int i = 0; i < n; i++)
        if (out[i].max_nodes > 0 && out[i].max_depth > 0)
            propose_one(self, &text[i], &out[i]);
    return 0;
}

const struct draft_ops draft_ngram = {.name = "ngram",
                                      .help = "looks the last tokens up in the text so far (prompt lookup)",
                                      .options = ngram_options,
                                      .open = ngram_open,
                                      .begin = ngram_begin,
                                      .propose = ngram_propose,
                                      .observe = ngram_observe,
                                      .close = ngram_close};
