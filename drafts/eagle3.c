/* eagle3: a small network reads the target's features and drafts a tree (Li et al., arXiv 2503.01840;
 * model-formats D). Row t of its network pairs the features of position t with the token at t + 1. Its cache
 * keeps rows of the target's features alone; a tree's own rows take the cells behind them and are forgotten.
 * The tree itself: drafts/eagle3_tree.h. */
#include "drafts/drafts.h"
#include "drafts/eagle3_tree.h"
#include "engine/backend.h"
#include "engine/err.h"
#include "engine/head.h"
#include <stdlib.h>
#include <string.h>

enum { OPT_SHAPE, OPT_TOP_K, OPT_SAMPLE, OPT_WEIGHTS };
enum { BLOCK = 64 };

static const char *const shape_words[] = {"chain", "static", "dynamic", NULL};
static const char *const sample_words[] = {"greedy", "sampled", NULL};
static const char *const weight_words[] = {"bf16", "fp8", NULL};
static const struct draft_option eagle3_options[] = {
    [OPT_SHAPE] = {"shape",
                   "chain; static: rank r under weight w while w r <= top_k; dynamic: the most probable", 0,
                   0, 2, 1, shape_words},
    [OPT_TOP_K] = {"top_k", "children of a node and, dynamic, nodes of a level that go on", 10, 1,
                   EAGLE3_TOP_K_MAX, 1, NULL},
    [OPT_SAMPLE] = {"sample",
                    "greedy: the most probable tokens; sampled: drawn at sampling.temperature, by the "
                    "target's noise (coupled) or with q (rejection: chain, static)",
                    0, 0, 1, 1, sample_words},
    [OPT_WEIGHTS] = {"weights", "of the head; fp8: E4M3 with a scale per output row, made at load", 0, 0, 1,
                     1, weight_words},
    {0},
};

struct eagle_slot {
    int n_true, n_cells, n_pending;
    uint32_t request;
    int first; /* position that the tree's first level decides */
    struct eagle3_tree tree;
    int *pending_token; /* owned [max_depth + 1] */
    float *pending;     /* owned [max_depth + 1, 3, width]: features of positions not run yet */
    float *g, *logits;  /* owned: of the last true row */
};

struct eagle3 {
    struct head head;
    struct head_pass pass;
    struct eagle3_choice choice;
    struct draft_hidden *hidden; /* borrowed: the loop's */
    int slots, max_depth, max_nodes;
    struct eagle_slot *slot; /* owned [slots] */
    struct head_row *row;    /* owned [max_rows] */
    int *paths;              /* owned [max_rows, max_depth + 1] */
    float *next_g;           /* owned [slots, max_candidates, hidden]: h of candidates that were run */
};

static void eagle3_close(void *self)
{
    struct eagle3 *e = self;
    if (!e)
        return;
    for (int i = 0; e->slot && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        void *owned[] = {s->pending_token, s->pending, s->g, s->logits};
        for (size_t k = 0; k < sizeof owned / sizeof *owned; k++)
            free(owned[k]);
        eagle3_tree_deinit(&s->tree);
    }
    eagle3_choice_deinit(&e->choice);
    head_pass_deinit(&e->pass);
    head_close(&e->head);
    free(e->slot);
    free(e->row);
    free(e->paths);
    free(e->next_g);
    free(e);
}

static void *take(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

static int take_memory(struct eagle3 *e)
{
    const struct head_config *c = &e->head.cfg;
    const size_t cand = (size_t)e->choice.max_candidates, deep = (size_t)e->max_depth + 1,
                 rows = (size_t)e->pass.max_rows;
    int ok = 1;
    e->slot = take((size_t)e->slots, sizeof *e->slot);
    e->row = take(rows, sizeof *e->row);
    e->paths = take(rows * deep, sizeof *e->paths);
    e->next_g = take((size_t)e->slots * cand * (size_t)c->hidden, sizeof(float));
    ok = e->slot && e->row && e->paths && e->next_g;
    for (int i = 0; ok && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        s->pending_token = take(deep, sizeof *s->pending_token);
        s->pending = take(deep * HEAD_TAPS * (size_t)c->target_hidden, sizeof(float));
        s->g = take((size_t)c->hidden, sizeof(float));
        s->logits = take((size_t)c->vocab, sizeof(float));
        ok = s->pending_token && s->pending && s->g && s->logits;
    }
    if (!ok)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory for trees of %d sequences", e->slots);
    for (int i = 0; i < e->slots; i++)
        TRY(eagle3_tree_init(&e->slot[i].tree, &e->choice));
    return 0;
}

/* Draws are for rules that draw: under the others, and at temperature 0, the most probable token is the best
 * guess. */
static enum eagle3_draw draw_of(const struct draft_env *env)
{
    if (env->option[OPT_SAMPLE] == 0 || !env->sampling || !(env->sampling->temperature > 0))
        return EAGLE3_BEST;
    return env->rule == ACCEPT_COUPLED     ? EAGLE3_COUPLED
           : env->rule == ACCEPT_REJECTION ? EAGLE3_FREE
                                           : EAGLE3_BEST;
}

static int open_choice(struct eagle3 *e, const struct draft_env *env)
{
    struct eagle3_choice *c = &e->choice;
    *c = (struct eagle3_choice){.shape = (enum eagle3_shape)env->option[OPT_SHAPE],
                                .draw = draw_of(env),
                                .top_k = (int)env->option[OPT_TOP_K],
                                .max_depth = e->max_depth,
                                .vocab = e->head.cfg.vocab,
                                .target_vocab = e->head.cfg.target_vocab,
                                .d2t = e->head.d2t,
                                .seed = env->seed};
    if (c->shape == EAGLE3_CHAIN)
        c->top_k = 1;
    if (c->draw != EAGLE3_BEST)
        c->filter = (struct sample_filter){env->sampling->temperature, env->sampling->top_k,
                                           env->sampling->top_p, env->sampling->min_p};
    if (c->top_k > c->vocab)
        FAIL(ERR_CONFIG, "draft 'eagle3': top_k: expected at most the head's %d ids, found %d", c->vocab,
             c->top_k);
    if (c->shape == EAGLE3_DYNAMIC && c->draw == EAGLE3_FREE)
        FAIL(ERR_CONFIG,
             "draft 'eagle3': sample sampled with rule rejection: expected shape chain or static, "
             "found dynamic: a tree that keeps the most probable of what was drawn has no q");
    return eagle3_choice_init(c, e->max_nodes);
}

static int open_all(struct eagle3 *e, const struct draft_env *env)
{
    const int deep = env->max_depth;
    TRY_CTX(head_open(&e->head, env->target, env->head, (enum model_numbers)env->option[OPT_WEIGHTS]),
            "draft.head");
    if (e->head.cfg.window && e->head.cfg.window < env->cap + deep)
        FAIL(ERR_LIMIT, "draft 'eagle3': the head sees %d keys, texts can have %d: lower model.max_context",
             e->head.cfg.window, env->cap);
    TRY(open_choice(e, env));
    const int wide = e->choice.max_frontier;
    int rows = env->slots * (wide > deep + 1 ? wide : deep + 1);
    rows = rows < BLOCK ? BLOCK : rows;
    TRY(head_pass_init(&e->pass, &e->head, env->slots, env->cap + 1 + deep * wide, rows, deep + 1));
    return take_memory(e);
}

static int eagle3_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    if (!env->head || !*env->head)
        FAIL(ERR_CONFIG, "draft 'eagle3': expected the directory of a head in draft.head, found nothing");
    if (!env->be->host_reads)
        FAIL(ERR_CONFIG, "draft 'eagle3': expected device.kind cpu, found %s: the tree is built on the host",
             env->be->ops->name);
    struct eagle3 *e = calloc(1, sizeof *e);
    if (!e)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory");
    *e = (struct eagle3){.slots = env->slots,
                         .max_depth = env->max_depth,
                         .max_nodes = env->max_depth > 0 ? env->max_nodes : 0};
    if (env->option[OPT_SHAPE] == EAGLE3_CHAIN && e->max_nodes > e->max_depth)
        e->max_nodes = e->max_depth;
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

static size_t width_of(const struct eagle3 *e)
{
    return (size_t)e->head.cfg.target_hidden;
}

static const float *feature_of(const struct eagle3 *e, int tap, int row)
{
    return e->hidden->rows + ((size_t)tap * (size_t)e->hidden->max_rows + (size_t)row) * width_of(e);
}

static void set_feature(struct eagle3 *e, int tap, int row, const float *from)
{
    memcpy(e->pass.feature + ((size_t)tap * (size_t)e->pass.max_rows + (size_t)row) * width_of(e), from,
           width_of(e) * sizeof *from);
}

static struct head_row true_row(int slot, int pos, int token)
{
    return (struct head_row){.token = token, .slot = slot, .pos = pos, .cell = pos, .base = pos + 1};
}

/* The draft of the next tree starts from this row. */
static void keep_last(struct eagle3 *e, int slot, int row)
{
    const size_t hidden = (size_t)e->head.cfg.hidden, vocab = (size_t)e->head.cfg.vocab;
    memcpy(e->slot[slot].g, e->pass.x + (size_t)row * hidden, hidden * sizeof(float));
    memcpy(e->slot[slot].logits, e->pass.logits + (size_t)row * vocab, vocab * sizeof(float));
}

static int eagle3_prefilled(void *self, int slot, const int *tokens, int at, int n)
{
    struct eagle3 *e = self;
    for (int done = 0, block; done < n; done += block) {
        block = n - done < e->pass.max_rows ? n - done : e->pass.max_rows;
        for (int i = 0; i < block; i++) {
            e->row[i] = true_row(slot, at + done + i, tokens[done + i + 1]);
            for (int t = 0; t < HEAD_TAPS; t++)
                set_feature(e, t, i, feature_of(e, t, done + i));
        }
        TRY(head_pass_run(&e->pass, e->row, block, 1));
        keep_last(e, slot, block - 1);
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

static int eagle3_observe(void *self, const struct draft_seen *seen, int n)
{
    struct eagle3 *e = self;
    for (int i = 0; i < n; i++) {
        const struct draft_seen *d = &seen[i];
        struct eagle_slot *s = &e->slot[d->text.slot];
        s->n_pending = d->n_new;
        for (int k = 0; k < d->n_new; k++) {
            const int row = k == 0 ? d->row : d->row + 1 + d->path[k - 1];
            s->pending_token[k] = d->text.tokens[d->text.n - d->n_new + k];
            for (int t = 0; t < HEAD_TAPS; t++)
                memcpy(s->pending + ((size_t)k * HEAD_TAPS + (size_t)t) * width_of(e), feature_of(e, t, row),
                       width_of(e) * sizeof(float));
        }
    }
    return 0;
}

/* Positions that the last step made true, of all sequences in one pass. */
static int catch_up(struct eagle3 *e, const struct draft_text *text, int n)
{
    int rows = 0;
    for (int i = 0; i < n; i++) {
        const struct eagle_slot *s = &e->slot[text[i].slot];
        for (int k = 0; k < s->n_pending; k++, rows++) {
            e->row[rows] = true_row(text[i].slot, s->n_true + k, s->pending_token[k]);
            for (int t = 0; t < HEAD_TAPS; t++)
                set_feature(e, t, rows, s->pending + ((size_t)k * HEAD_TAPS + (size_t)t) * width_of(e));
        }
    }
    if (rows > 0)
        TRY(head_pass_run(&e->pass, e->row, rows, 1));
    for (int i = 0, at = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        at += s->n_pending;
        if (s->n_pending > 0)
            keep_last(e, text[i].slot, at - 1);
        s->n_true += s->n_pending;
        s->n_pending = 0;
    }
    return 0;
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
    const size_t hidden = (size_t)e->head.cfg.hidden;
    int *path = e->paths + (size_t)row * (size_t)(e->max_depth + 1);
    const float *g =
        c->parent < 0
            ? s->g
            : e->next_g + ((size_t)slot * (size_t)e->choice.max_candidates + (size_t)c->parent) * hidden;
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
    memcpy(e->pass.x + (size_t)row * hidden, g, hidden * sizeof *g);
}

/* One level deeper in every tree that has room for it. */
static int grow(struct eagle3 *e, const struct draft_text *text, int n, const struct tree *out, int depth)
{
    const size_t hidden = (size_t)e->head.cfg.hidden, vocab = (size_t)e->head.cfg.vocab;
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
    TRY(head_pass_run(&e->pass, e->row, rows, 0));
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        float *next_g = e->next_g + (size_t)text[i].slot * (size_t)e->choice.max_candidates * hidden;
        const int from = s->tree.n;
        for (int k = 0; k < s->tree.n_frontier; k++) {
            const int index = s->tree.frontier[k], row = s->tree.candidate[index].row;
            memcpy(next_g + (size_t)index * hidden, e->pass.x + (size_t)row * hidden,
                   hidden * sizeof *next_g);
            extend(e, s, index, e->pass.logits + (size_t)row * vocab);
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
                                       .tap = eagle3_tap,
                                       .prefilled = eagle3_prefilled};
