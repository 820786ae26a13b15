/* eagle3: a small network reads the target's features and drafts a tree (Li et al., arXiv 2503.01840;
 * model-formats D). Row t of its network pairs the features of position t with the token at t + 1. Its cache
 * keeps rows of the target's features alone; a tree's own rows take the cells behind them and are forgotten.
 * The tree itself: drafts/eagle3_tree.h. */
#include "drafts/drafts.h"
#include "drafts/eagle3.h"
#include "drafts/eagle3_tree.h"
#include "engine/backend.h"
#include "engine/err.h"
#include "engine/head.h"
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64 };

static const char *const shape_words[] = {"chain", "static", "dynamic", NULL};
static const char *const sample_words[] = {"greedy", "sampled", NULL};
static const char *const weight_words[] = {"bf16", "fp8", NULL};
static const struct draft_option eagle3_options[] = {
    [EAGLE3_SHAPE] = {"shape",
                      "chain; static: rank r under weight w while w r <= top_k; dynamic: the most probable",
                      0, 0, 2, 1, shape_words},
    [EAGLE3_TOP_K] = {"top_k", "children of a node and, dynamic, nodes of a level that go on", 10, 1, TOP_MAX,
                      1, NULL},
    [EAGLE3_SAMPLE] = {"sample",
                       "greedy: the most probable tokens; sampled: drawn at sampling.temperature, by the "
                       "target's noise (coupled) or with q (rejection: chain, static)",
                       0, 0, 1, 1, sample_words},
    [EAGLE3_WEIGHTS] = {"weights", "of the head; fp8: E4M3 with a scale per output row, made at load", 0, 0,
                        1, 1, weight_words},
    {0},
};

struct eagle_slot {
    int n_true, n_cells, n_pending;
    uint32_t request;
    int first; /* position that the tree's first level decides */
    struct eagle3_tree tree;
    int *pending_token; /* owned [max_depth + 1] */
    float *logits;      /* owned [vocab]: of the last true row */
};

struct eagle3 {
    struct backend *be; /* borrowed */
    struct head head;
    struct head_pass pass;
    struct eagle3_choice choice;
    struct draft_hidden *hidden; /* borrowed: the loop's */
    int slots, max_depth, max_nodes;
    struct eagle_slot *slot; /* owned [slots] */
    struct head_row *row;    /* owned [max_rows] */
    int *paths;              /* owned [max_rows, max_depth + 1] */
    int *numbers;            /* owned [max_numbers]: rows to gather, on their way to `from` */
    int max_numbers;
    struct {
        int *from;      /* [max_numbers] */
        float *pending; /* [3, slots, max_depth + 1, width]: features of positions not run yet */
        float *root;    /* [slots, hidden]: g after the last true row */
        float *g;       /* [max_rows, hidden]: in turn with pass.x, which the pass before left in it */
    } on;               /* memory of the backend */
    float *copy;        /* memory of the host: the pass's logits where it cannot read them, or NULL */
};

static void eagle3_close(void *self)
{
    struct eagle3 *e = self;
    if (!e)
        return;
    for (int i = 0; e->slot && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        void *owned[] = {s->pending_token, s->logits};
        for (size_t k = 0; k < sizeof owned / sizeof *owned; k++)
            free(owned[k]);
        eagle3_tree_deinit(&s->tree);
    }
    void *const lent[] = {e->on.from, e->on.pending, e->on.root, e->on.g, e->copy};
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        e->be->ops->release(e->be, lent[i]);
    eagle3_choice_deinit(&e->choice);
    head_pass_deinit(&e->pass);
    head_close(&e->head);
    free(e->slot);
    free(e->row);
    free(e->paths);
    free(e->numbers);
    free(e);
}

static void *take(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

static int take_memory(struct eagle3 *e)
{
    const size_t deep = (size_t)e->max_depth + 1, rows = (size_t)e->pass.max_rows;
    int ok = 1;
    e->slot = take((size_t)e->slots, sizeof *e->slot);
    e->row = take(rows, sizeof *e->row);
    e->paths = take(rows * deep, sizeof *e->paths);
    e->numbers = take((size_t)e->max_numbers, sizeof *e->numbers);
    ok = e->slot && e->row && e->paths && e->numbers;
    for (int i = 0; ok && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        s->pending_token = take(deep, sizeof *s->pending_token);
        s->logits = take((size_t)e->head.cfg.vocab, sizeof(float));
        ok = s->pending_token && s->logits;
    }
    if (!ok)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory for trees of %d sequences", e->slots);
    for (int i = 0; i < e->slots; i++)
        TRY(eagle3_tree_init(&e->slot[i].tree, &e->choice));
    return 0;
}

static int take_device(struct eagle3 *e)
{
    const struct head_config *c = &e->head.cfg;
    const size_t slots = (size_t)e->slots, deep = (size_t)e->max_depth + 1, rows = (size_t)e->pass.max_rows,
                 hidden = (size_t)c->hidden;
    void *copy = NULL;
    TRY(backend_take(e->be, (size_t)e->max_numbers, sizeof *e->on.from, &e->on.from));
    TRY(backend_take(e->be, HEAD_TAPS * slots * deep * (size_t)c->target_hidden, sizeof *e->on.pending,
                     &e->on.pending));
    TRY(backend_take(e->be, slots * hidden, sizeof *e->on.root, &e->on.root));
    TRY(backend_take(e->be, rows * hidden, sizeof *e->on.g, &e->on.g));
    if (!e->be->host_reads)
        TRY(e->be->ops->alloc_host(e->be, rows * (size_t)c->vocab * sizeof *e->copy, &copy));
    e->copy = copy;
    return 0;
}

/* Draws are for rules that draw: under the others, and at temperature 0, the most probable token is the best
 * guess. */
static enum eagle3_draw draw_of(const struct draft_env *env)
{
    if (env->option[EAGLE3_SAMPLE] == 0 || !env->sampling || !(env->sampling->temperature > 0))
        return EAGLE3_BEST;
    return env->rule == ACCEPT_COUPLED     ? EAGLE3_COUPLED
           : env->rule == ACCEPT_REJECTION ? EAGLE3_FREE
                                           : EAGLE3_BEST;
}

static int open_choice(struct eagle3 *e, const struct draft_env *env)
{
    struct eagle3_choice *c = &e->choice;
    *c = (struct eagle3_choice){.shape = (enum eagle3_shape)env->option[EAGLE3_SHAPE],
                                .draw = draw_of(env),
                                .max_depth = e->max_depth,
                                .vocab = e->head.cfg.vocab,
                                .target_vocab = e->head.cfg.target_vocab,
                                .d2t = e->head.d2t,
                                .seed = env->seed};
    TRY(eagle3_top_k(env, &e->head, &c->top_k));
    if (c->draw != EAGLE3_BEST)
        c->filter = (struct sample_filter){env->sampling->temperature, env->sampling->top_k,
                                           env->sampling->top_p, env->sampling->min_p};
    if (c->shape == EAGLE3_DYNAMIC && c->draw == EAGLE3_FREE)
        FAIL(ERR_CONFIG,
             "draft 'eagle3': sample sampled with rule rejection: expected shape chain or static, "
             "found dynamic: a tree that keeps the most probable of what was drawn has no q");
    return eagle3_choice_init(c, e->max_nodes);
}

int eagle3_open_head(struct head *h, const struct draft_env *env)
{
    if (!env->head || !*env->head)
        FAIL(ERR_CONFIG, "draft 'eagle3': expected the directory of a head in draft.head, found nothing");
    TRY_CTX(head_open(h, env->target, env->head, (enum model_numbers)env->option[EAGLE3_WEIGHTS]),
            "draft.head");
    if (h->cfg.window && h->cfg.window < env->cap + env->max_depth)
        FAIL(ERR_LIMIT, "draft 'eagle3': the head sees %d keys, texts can have %d: lower model.max_context",
             h->cfg.window, env->cap);
    return 0;
}

int eagle3_nodes(const struct draft_env *env)
{
    const int deep = env->max_depth, most = env->max_nodes;
    if (deep <= 0)
        return 0;
    return env->option[EAGLE3_SHAPE] == EAGLE3_CHAIN && most > deep ? deep : most;
}

int eagle3_top_k(const struct draft_env *env, const struct head *h, int *out)
{
    *out = env->option[EAGLE3_SHAPE] == EAGLE3_CHAIN ? 1 : (int)env->option[EAGLE3_TOP_K];
    if (*out > h->cfg.vocab)
        FAIL(ERR_CONFIG, "draft 'eagle3': top_k: expected at most the head's %d ids, found %d", h->cfg.vocab,
             *out);
    return 0;
}

static int open_all(struct eagle3 *e, const struct draft_env *env)
{
    const int deep = env->max_depth;
    TRY(eagle3_open_head(&e->head, env));
    TRY(open_choice(e, env));
    const int wide = e->choice.max_frontier;
    int rows = env->slots * (wide > deep + 1 ? wide : deep + 1);
    rows = rows < BLOCK ? BLOCK : rows;
    TRY(head_pass_init(&e->pass, &e->head, env->slots, env->cap + 1 + deep * wide, rows, deep + 1));
    e->max_numbers = rows > env->slots * (deep + 1) ? rows : env->slots * (deep + 1);
    TRY(take_memory(e));
    return take_device(e);
}

static int eagle3_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    struct eagle3 *e = calloc(1, sizeof *e);
    if (!e)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory");
    *e = (struct eagle3){
        .be = env->be, .slots = env->slots, .max_depth = env->max_depth, .max_nodes = eagle3_nodes(env)};
    const int rc = open_all(e, env);
    if (rc)
        eagle3_close(e);
    else
        *self = e;
    return rc;
}

static int eagle3_max_nodes(const void *self)
{
    const struct eagle3 *e = self;
    return e->max_nodes;
}

static int eagle3_draws(const void *self)
{
    const struct eagle3 *e = self;
    return e->choice.draw == EAGLE3_FREE;
}

static void eagle3_tap(void *self, struct draft_hidden *hidden)
{
    struct eagle3 *e = self;
    memcpy(hidden->layer, e->head.cfg.layer, sizeof hidden->layer);
    e->hidden = hidden;
}

/* Of rows e->numbers[0..n) of x; -1: the row of y stays as it is. */
static int gather(struct eagle3 *e, const float *x, float *y, int n, int dim)
{
    const struct gather a = {
        .x = x, .from = e->on.from, .y = y, .k = dim, .rows = n, .dim = dim, .threads = 1};
    return e->be->ops->gather(e->be, &a);
}

static int send_numbers(struct eagle3 *e, int n)
{
    return e->be->ops->upload(e->be, e->on.from, e->numbers, (size_t)n * sizeof *e->numbers);
}

/* Three features of each of n rows; a plane of x has x_rows, one of y y_rows. */
static int gather_features(struct eagle3 *e, const float *x, int x_rows, float *y, int y_rows, int n)
{
    const size_t width = (size_t)e->head.cfg.target_hidden;
    TRY(send_numbers(e, n));
    for (size_t t = 0; t < HEAD_TAPS; t++)
        TRY(gather(e, x + t * (size_t)x_rows * width, y + t * (size_t)y_rows * width, n, (int)width));
    return 0;
}

struct head_row eagle3_true_row(int slot, int pos, int token)
{
    return (struct head_row){.token = token, .slot = slot, .pos = pos, .cell = pos, .base = pos + 1};
}

/* The logits of the pass's n rows as the host sees them. */
static int fetch(struct eagle3 *e, int n, const float **logits)
{
    const size_t bytes = (size_t)n * (size_t)e->head.cfg.vocab * sizeof **logits;
    if (e->copy)
        TRY(e->be->ops->download(e->be, e->copy, e->pass.logits, bytes));
    *logits = e->copy ? e->copy : e->pass.logits;
    return e->be->ops->sync(e->be);
}

/* The next trees start from rows e->numbers[slot] of the pass, which had n. */
static int keep_roots(struct eagle3 *e, int n)
{
    const size_t vocab = (size_t)e->head.cfg.vocab;
    const float *logits = NULL;
    TRY(send_numbers(e, e->slots));
    TRY(gather(e, e->pass.x, e->on.root, e->slots, e->head.cfg.hidden));
    TRY(fetch(e, n, &logits));
    for (int slot = 0; slot < e->slots; slot++)
        if (e->numbers[slot] >= 0)
            memcpy(e->slot[slot].logits, logits + (size_t)e->numbers[slot] * vocab, vocab * sizeof *logits);
    return 0;
}

/* Of all but the last row the keys and values are wanted, and nothing else. */
static int eagle3_prefilled(void *self, int slot, const int *tokens, int at, int n)
{
    struct eagle3 *e = self;
    for (int done = 0, block; done < n; done += block) {
        block = n - done < e->pass.max_rows ? n - done : e->pass.max_rows;
        const int is_last = done + block == n;
        for (int i = 0; i < block; i++) {
            e->row[i] = eagle3_true_row(slot, at + done + i, tokens[done + i + 1]);
            e->numbers[i] = done + i;
        }
        TRY(gather_features(e, e->hidden->prompt, e->hidden->max_prompt_rows, e->pass.feature,
                            e->pass.max_rows, block));
        TRY(head_pass_start(&e->pass, e->row, block, HEAD_FEATURES | (is_last ? 0 : HEAD_CACHE)));
        for (int i = 0; i < e->slots; i++)
            e->numbers[i] = i == slot ? block - 1 : -1;
        if (is_last)
            TRY(keep_roots(e, block));
    }
    return 0;
}

static int eagle3_begin(void *self, const struct draft_text *text)
{
    struct eagle3 *e = self;
    e->slot[text->slot].n_true = text->n - 1;
    e->slot[text->slot].n_pending = 0;
    return 0;
}

/* Their features are put aside before another pass of the target comes. */
static int eagle3_observe(void *self, const struct draft_seen *seen, int n)
{
    struct eagle3 *e = self;
    const int deep = e->max_depth + 1, all = e->slots * deep;
    for (int i = 0; i < all; i++)
        e->numbers[i] = -1;
    for (int i = 0; i < n; i++) {
        const struct draft_seen *d = &seen[i];
        struct eagle_slot *s = &e->slot[d->text.slot];
        s->n_pending = d->n_new;
        for (int k = 0; k < d->n_new; k++) {
            s->pending_token[k] = d->text.tokens[d->text.n - d->n_new + k];
            e->numbers[d->text.slot * deep + k] = k == 0 ? d->row : d->row + 1 + d->path[k - 1];
        }
    }
    return gather_features(e, e->hidden->rows, e->hidden->max_rows, e->on.pending, all, all);
}

/* Positions that the last step made true, of all sequences in one pass. */
static int catch_up(struct eagle3 *e, const struct draft_text *text, int n)
{
    const int deep = e->max_depth + 1;
    int rows = 0;
    for (int i = 0; i < n; i++) {
        const struct eagle_slot *s = &e->slot[text[i].slot];
        for (int k = 0; k < s->n_pending; k++, rows++) {
            e->row[rows] = eagle3_true_row(text[i].slot, s->n_true + k, s->pending_token[k]);
            e->numbers[rows] = text[i].slot * deep + k;
        }
    }
    if (rows == 0)
        return 0;
    TRY(gather_features(e, e->on.pending, e->slots * deep, e->pass.feature, e->pass.max_rows, rows));
    TRY(head_pass_start(&e->pass, e->row, rows, HEAD_FEATURES));
    for (int slot = 0; slot < e->slots; slot++)
        e->numbers[slot] = -1;
    for (int i = 0, at = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        at += s->n_pending;
        if (s->n_pending > 0)
            e->numbers[text[i].slot] = at - 1;
        s->n_true += s->n_pending;
        s->n_pending = 0;
    }
    return keep_roots(e, rows);
}

static void extend(struct eagle3 *e, struct eagle_slot *s, int parent, const float *logits)
{
    const int level = parent < 0 ? 0 : s->tree.candidate[parent].depth;
    const struct sample_key key = {e->choice.seed, s->request, (uint32_t)(s->first + level)};
    eagle3_tree_extend(&s->tree, &e->choice, parent, logits, &key);
}

/* One row of a candidate: behind its ancestors' cells. */
static void lay_candidate(struct eagle3 *e, int slot, int index, int row)
{
    struct eagle_slot *s = &e->slot[slot];
    struct eagle3_candidate *c = &s->tree.candidate[index];
    int *path = e->paths + (size_t)row * (size_t)(e->max_depth + 1);
    e->numbers[row] = c->parent < 0 ? slot : s->tree.candidate[c->parent].row;
    c->cell = s->n_true + s->n_cells++;
    c->row = row;
    for (int i = index, at = c->depth - 1; i >= 0; i = s->tree.candidate[i].parent)
        path[at--] = s->tree.candidate[i].cell;
    e->row[row] = (struct head_row){.token = c->token,
                                    .slot = slot,
                                    .pos = s->n_true + c->depth - 1,
                                    .cell = c->cell,
                                    .base = s->n_true,
                                    .path = path};
}

/* Rows e->numbers[0..n): g goes on from the roots or from the pass before, which left it in x. */
static int run_level(struct eagle3 *e, int n, int from_roots)
{
    float *const before = e->pass.x;
    e->pass.x = e->on.g;
    e->on.g = before;
    TRY(send_numbers(e, n));
    TRY(gather(e, from_roots ? e->on.root : before, e->pass.x, n, e->head.cfg.hidden));
    return head_pass_start(&e->pass, e->row, n, 0);
}

/* One level deeper in every tree that has room for it. */
static int grow(struct eagle3 *e, const struct draft_text *text, int n, const struct tree *out, int depth)
{
    const float *logits = NULL;
    int rows = 0;
    for (int i = 0; i < n; i++) {
        struct eagle3_tree *t = &e->slot[text[i].slot].tree;
        if (depth > out[i].max_depth)
            t->n_frontier = 0;
        for (int k = 0; k < t->n_frontier; k++)
            lay_candidate(e, text[i].slot, t->frontier[k], rows++);
    }
    if (rows == 0)
        return 0;
    TRY(run_level(e, rows, depth == 2));
    TRY(fetch(e, rows, &logits));
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        const int from = s->tree.n;
        for (int k = 0; k < s->tree.n_frontier; k++) {
            const int index = s->tree.frontier[k], row = s->tree.candidate[index].row;
            extend(e, s, index, logits + (size_t)row * (size_t)e->head.cfg.vocab);
        }
        eagle3_tree_advance(&s->tree, &e->choice, from);
    }
    return 0;
}

static int eagle3_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    struct eagle3 *e = self;
    TRY(catch_up(e, text, n));
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        eagle3_tree_clear(&s->tree);
        s->n_cells = 0;
        s->request = text[i].request;
        s->first = text[i].n;
        if (s->n_true == 0 || out[i].max_nodes == 0 || out[i].max_depth == 0)
            continue;
        extend(e, s, -1, s->logits);
        eagle3_tree_advance(&s->tree, &e->choice, 0);
    }
    for (int depth = 2; depth <= e->max_depth; depth++)
        TRY(grow(e, text, n, out, depth));
    for (int i = 0; i < n; i++)
        eagle3_tree_emit(&e->slot[text[i].slot].tree, &e->choice, &out[i]);
    return 0;
}

/* Draws are the host's business. */
static const struct draft_ops *eagle3_pick(const struct draft_env *env)
{
    return env->be->host_reads || draw_of(env) != EAGLE3_BEST ? NULL : &draft_eagle3_device;
}

const struct draft_ops draft_eagle3 = {.name = "eagle3",
                                       .help = "a small network on the target's features: draft.head",
                                       .needs = DRAFT_HOST | DRAFT_HIDDEN | DRAFT_Q,
                                       .options = eagle3_options,
                                       .open = eagle3_open,
                                       .max_nodes = eagle3_max_nodes,
                                       .close = eagle3_close,
                                       .begin = eagle3_begin,
                                       .propose = eagle3_propose,
                                       .observe = eagle3_observe,
                                       .draws = eagle3_draws,
                                       .pick = eagle3_pick,
                                       .tap = eagle3_tap,
                                       .prefilled = eagle3_prefilled};
