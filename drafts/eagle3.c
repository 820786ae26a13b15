/* eagle3: a small network reads the target's features and drafts a tree (Li et al., arXiv 2503.01840;
 * model-formats D). Row t of its network pairs the features of position t with the token at t + 1. Its cache
 * keeps rows of the target's features alone; a tree's own rows take the cells behind them and are forgotten.
 * Choice is greedy, so no q. */
#include "drafts/drafts.h"
#include "engine/backend.h"
#include "engine/err.h"
#include "engine/head.h"
#include <stdlib.h>
#include <string.h>

enum { OPT_SHAPE, OPT_TOP_K };
enum shape { SHAPE_CHAIN, SHAPE_STATIC, SHAPE_DYNAMIC };
enum { BLOCK = 64 };

static const char *const shape_words[] = {"chain", "static", "dynamic", NULL};
static const struct draft_option eagle3_options[] = {
    [OPT_SHAPE] = {"shape",
                   "chain; static: rank r under weight w while w r <= top_k; dynamic: the most probable", 0,
                   0, 2, 1, shape_words},
    [OPT_TOP_K] = {"top_k", "children of a node and, dynamic, nodes of a level that go on", 10, 1, TOP_MAX, 1,
                   NULL},
    {0},
};

/* A node that may become part of the tree. */
struct candidate {
    int token, parent, depth, weight, cell, row, kept, node;
    double score;
};

struct eagle_slot {
    int n_true, n_cells, n_pending, n_frontier, n_candidates, level;
    struct candidate *candidate; /* owned [max_candidates] */
    int *frontier;               /* owned [max_frontier], candidates to run */
    int *pending_token;          /* owned [max_depth + 1] */
    int *root_id;                /* owned [top_k]: what the last true row finds most probable, */
    float *root_log_p;           /* owned [top_k] and how much so */
};

struct eagle3 {
    struct backend *be; /* borrowed */
    struct head head;
    struct head_pass pass;
    struct draft_hidden *hidden; /* borrowed: the loop's */
    int slots, max_depth, max_nodes, top_k, max_frontier, max_candidates;
    enum shape shape;
    struct eagle_slot *slot; /* owned [slots] */
    struct head_row *row;    /* owned [max_rows] */
    int *paths;              /* owned [max_rows, max_depth] */
    int *order;              /* owned [max_candidates] */
    int *numbers;            /* owned [max_numbers]: rows to gather, on their way to `from` */
    int max_numbers;
    struct {
        int *from;      /* [max_numbers] */
        float *pending; /* [3, slots, max_depth + 1, width]: features of positions not run yet */
        float *root;    /* [slots, hidden]: g after the last true row */
        float *g;       /* [max_rows, hidden]: the pass before this one left it in its x */
        int *id;        /* [max_rows, top_k], best first, */
        float *log_p;   /* with their log-probabilities */
    } on;               /* memory of the backend */
    int *id;            /* host memory of the backend: copies of `on` */
    float *log_p;
};

static void eagle3_close(void *self)
{
    struct eagle3 *e = self;
    if (!e)
        return;
    for (int i = 0; e->slot && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        void *owned[] = {s->candidate, s->frontier, s->pending_token, s->root_id, s->root_log_p};
        for (size_t k = 0; k < sizeof owned / sizeof *owned; k++)
            free(owned[k]);
    }
    void *const lent[] = {e->on.from, e->on.pending, e->on.root, e->on.g,
                          e->on.id,   e->on.log_p,   e->id,      e->log_p};
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        e->be->ops->release(e->be, lent[i]);
    head_pass_deinit(&e->pass);
    head_close(&e->head);
    free(e->slot);
    free(e->row);
    free(e->paths);
    free(e->numbers);
    free(e->order);
    free(e);
}

static void *take(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

static int take_memory(struct eagle3 *e)
{
    const size_t cand = (size_t)e->max_candidates, deep = (size_t)e->max_depth + 1,
                 rows = (size_t)e->pass.max_rows, k = (size_t)e->top_k;
    int ok = 1;
    e->slot = take((size_t)e->slots, sizeof *e->slot);
    e->row = take(rows, sizeof *e->row);
    e->paths = take(rows * deep, sizeof *e->paths);
    e->numbers = take((size_t)e->max_numbers, sizeof *e->numbers);
    e->order = take(cand, sizeof *e->order);
    ok = e->slot && e->row && e->paths && e->numbers && e->order;
    for (int i = 0; ok && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        s->candidate = take(cand, sizeof *s->candidate);
        s->frontier = take(cand, sizeof *s->frontier);
        s->pending_token = take(deep, sizeof *s->pending_token);
        s->root_id = take(k, sizeof *s->root_id);
        s->root_log_p = take(k, sizeof *s->root_log_p);
        ok = s->candidate && s->frontier && s->pending_token && s->root_id && s->root_log_p;
    }
    if (!ok)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory for trees of %d sequences", e->slots);
    return 0;
}

/* One block of floats or ints. */
static int take_words(struct backend *be, int (*alloc)(struct backend *, size_t, void **), size_t n,
                      void *out)
{
    void *p = NULL;
    TRY(alloc(be, n * sizeof(float), &p));
    memcpy(out, &p, sizeof p);
    return 0;
}

static int take_device(struct eagle3 *e)
{
    const struct head_config *c = &e->head.cfg;
    const struct backend_ops *ops = e->be->ops;
    const size_t slots = (size_t)e->slots, deep = (size_t)e->max_depth + 1, rows = (size_t)e->pass.max_rows,
                 hidden = (size_t)c->hidden, best = rows * (size_t)e->top_k;
    TRY(take_words(e->be, ops->alloc, (size_t)e->max_numbers, &e->on.from));
    TRY(take_words(e->be, ops->alloc, HEAD_TAPS * slots * deep * (size_t)c->target_hidden, &e->on.pending));
    TRY(take_words(e->be, ops->alloc, slots * hidden, &e->on.root));
    TRY(take_words(e->be, ops->alloc, rows * hidden, &e->on.g));
    TRY(take_words(e->be, ops->alloc, best, &e->on.id));
    TRY(take_words(e->be, ops->alloc, best, &e->on.log_p));
    TRY(take_words(e->be, ops->alloc_host, best, &e->id));
    return take_words(e->be, ops->alloc_host, best, &e->log_p);
}

static int open_all(struct eagle3 *e, const struct draft_env *env)
{
    TRY_CTX(head_open(&e->head, env->target, env->head, MODEL_BF16), "draft.head");
    const int k = e->top_k, deep = env->max_depth;
    if (k > e->head.cfg.vocab)
        FAIL(ERR_CONFIG, "draft 'eagle3': top_k: expected at most the head's %d ids, found %d",
             e->head.cfg.vocab, k);
    if (e->head.cfg.window && e->head.cfg.window < env->cap + deep)
        FAIL(ERR_LIMIT, "draft 'eagle3': the head sees %d keys, texts can have %d: lower model.max_context",
             e->head.cfg.window, env->cap);
    e->max_frontier = e->shape == SHAPE_DYNAMIC ? k : e->max_nodes > 0 ? e->max_nodes : 1;
    e->max_candidates = k + (deep > 1 ? deep - 1 : 0) * e->max_frontier * k;
    int rows = env->slots * (e->max_frontier > deep + 1 ? e->max_frontier : deep + 1);
    rows = rows < BLOCK ? BLOCK : rows;
    TRY(head_pass_init(&e->pass, &e->head, env->slots, env->cap + 1 + deep * e->max_frontier, rows,
                       deep + 1));
    e->max_numbers = rows > env->slots * (deep + 1) ? rows : env->slots * (deep + 1);
    TRY(take_memory(e));
    return take_device(e);
}

static int eagle3_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    if (!env->head || !*env->head)
        FAIL(ERR_CONFIG, "draft 'eagle3': expected the directory of a head in draft.head, found nothing");
    struct eagle3 *e = calloc(1, sizeof *e);
    if (!e)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory");
    const enum shape shape = (enum shape)env->option[OPT_SHAPE];
    *e = (struct eagle3){.be = env->be,
                         .slots = env->slots,
                         .max_depth = env->max_depth,
                         .max_nodes = env->max_depth > 0 ? env->max_nodes : 0,
                         .top_k = shape == SHAPE_CHAIN ? 1 : (int)env->option[OPT_TOP_K],
                         .shape = shape};
    if (e->shape == SHAPE_CHAIN && e->max_nodes > e->max_depth)
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

/* Three features of each of n rows; planes as in x, so many rows each, to those of y. */
static int gather_features(struct eagle3 *e, const float *x, int x_rows, float *y, int y_rows, int n)
{
    const size_t width = (size_t)e->head.cfg.target_hidden;
    TRY(send_numbers(e, n));
    for (size_t t = 0; t < HEAD_TAPS; t++)
        TRY(gather(e, x + t * (size_t)x_rows * width, y + t * (size_t)y_rows * width, n, (int)width));
    return 0;
}

static struct head_row true_row(int slot, int pos, int token)
{
    return (struct head_row){.token = token, .slot = slot, .pos = pos, .cell = pos, .base = pos + 1};
}

/* The best ids of the pass's n rows, for the host. */
static int fetch_best(struct eagle3 *e, int n)
{
    const struct head *h = &e->head;
    const size_t words = (size_t)n * (size_t)e->top_k;
    const struct top a = {.logits = e->pass.logits,
                          .map = h->ids,
                          .id = e->on.id,
                          .log_p = e->on.log_p,
                          .rows = n,
                          .vocab = h->cfg.vocab,
                          .k = e->top_k};
    TRY(e->be->ops->top(e->be, &a));
    TRY(e->be->ops->download(e->be, e->id, e->on.id, words * sizeof *e->id));
    TRY(e->be->ops->download(e->be, e->log_p, e->on.log_p, words * sizeof *e->log_p));
    return e->be->ops->sync(e->be);
}

/* The next trees start from rows e->numbers[slot] of the pass. */
static int keep_roots(struct eagle3 *e, int n)
{
    const size_t k = (size_t)e->top_k;
    TRY(send_numbers(e, e->slots));
    TRY(gather(e, e->pass.x, e->on.root, e->slots, e->head.cfg.hidden));
    TRY(fetch_best(e, n));
    for (int slot = 0; slot < e->slots; slot++) {
        const size_t row = (size_t)e->numbers[slot];
        if (e->numbers[slot] < 0)
            continue;
        memcpy(e->slot[slot].root_id, e->id + row * k, k * sizeof *e->id);
        memcpy(e->slot[slot].root_log_p, e->log_p + row * k, k * sizeof *e->log_p);
    }
    return 0;
}

/* Only the last row's outcome is wanted, of the others their keys and values. */
static int eagle3_prefilled(void *self, int slot, const int *tokens, int at, int n)
{
    struct eagle3 *e = self;
    for (int done = 0, block; done < n; done += block) {
        block = n - done < e->pass.max_rows ? n - done : e->pass.max_rows;
        const unsigned flags = HEAD_FEATURES | (done + block < n ? HEAD_CACHE : 0);
        for (int i = 0; i < block; i++) {
            e->row[i] = true_row(slot, at + done + i, tokens[done + i + 1]);
            e->numbers[i] = done + i;
        }
        TRY(gather_features(e, e->hidden->rows, e->hidden->max_rows, e->pass.feature, e->pass.max_rows,
                            block));
        TRY(head_pass_start(&e->pass, e->row, block, flags));
        for (int i = 0; i < e->slots; i++)
            e->numbers[i] = i == slot ? block - 1 : -1;
        if (done + block == n)
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
            e->row[rows] = true_row(text[i].slot, s->n_true + k, s->pending_token[k]);
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

/* The best ids after a node or, parent -1, after the text. */
static void add_children(const struct eagle3 *e, struct eagle_slot *s, int parent, const int *id,
                         const float *log_p)
{
    const struct candidate *p = parent < 0 ? NULL : &s->candidate[parent];
    const int weight = p ? p->weight : 1, k = e->shape == SHAPE_STATIC ? e->top_k / weight : e->top_k;
    for (int r = 0; r < k && s->n_candidates < e->max_candidates; r++)
        s->candidate[s->n_candidates++] = (struct candidate){.token = id[r],
                                                             .parent = parent,
                                                             .depth = p ? p->depth + 1 : 1,
                                                             .weight = weight * (r + 1),
                                                             .score = (p ? p->score : 0) + (double)log_p[r]};
}

/* Of candidates [from, n) the best `most` in the order of their recording; equals: the earlier. Returns how
 * many. */
static int choose(struct eagle3 *e, struct eagle_slot *s, int from, int most, int *out)
{
    int n = 0;
    for (int i = from; i < s->n_candidates; i++) {
        int at = n;
        for (; at > 0 && s->candidate[i].score > s->candidate[e->order[at - 1]].score; at--)
            if (at < most)
                e->order[at] = e->order[at - 1];
        if (at < most)
            e->order[at] = i;
        n += n < most;
    }
    for (int i = from; i < s->n_candidates; i++)
        s->candidate[i].kept = 0;
    for (int i = 0; i < n; i++)
        s->candidate[e->order[i]].kept = 1;
    n = 0;
    for (int i = from; i < s->n_candidates; i++)
        if (s->candidate[i].kept)
            out[n++] = i;
    return n;
}

static void next_frontier(struct eagle3 *e, struct eagle_slot *s, int from)
{
    s->n_frontier = 0;
    if (e->shape == SHAPE_DYNAMIC)
        s->n_frontier = choose(e, s, from, e->max_frontier, s->frontier);
    else
        for (int i = from; i < s->n_candidates && s->n_frontier < e->max_frontier; i++)
            s->frontier[s->n_frontier++] = i;
}

/* One row of a candidate: behind its ancestors' cells. */
static void lay_candidate(struct eagle3 *e, int slot, int index, int row)
{
    struct eagle_slot *s = &e->slot[slot];
    struct candidate *c = &s->candidate[index];
    int *path = e->paths + (size_t)row * (size_t)(e->max_depth + 1);
    e->numbers[row] = c->parent < 0 ? slot : s->candidate[c->parent].row;
    c->cell = s->n_true + s->n_cells++;
    c->row = row;
    for (int i = index, at = c->depth - 1; i >= 0; i = s->candidate[i].parent)
        path[at--] = s->candidate[i].cell;
    e->row[row] = (struct head_row){.token = c->token,
                                    .slot = slot,
                                    .pos = s->n_true + c->depth - 1,
                                    .cell = c->cell,
                                    .base = s->n_true,
                                    .path = path};
}

/* One level deeper in every tree that has room for it. */
static int grow(struct eagle3 *e, const struct draft_text *text, int n, const struct tree *out, int depth)
{
    const size_t best = (size_t)e->top_k;
    float *const before = e->pass.x;
    int rows = 0;
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        if (depth > out[i].max_depth)
            s->n_frontier = 0;
        for (int k = 0; k < s->n_frontier; k++)
            lay_candidate(e, text[i].slot, s->frontier[k], rows++);
    }
    if (rows == 0)
        return 0;
    e->pass.x = e->on.g;
    e->on.g = before;
    TRY(send_numbers(e, rows));
    TRY(gather(e, depth == 2 ? e->on.root : before, e->pass.x, rows, e->head.cfg.hidden));
    TRY(head_pass_start(&e->pass, e->row, rows, 0));
    TRY(fetch_best(e, rows));
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        const int from = s->n_candidates;
        for (int k = 0; k < s->n_frontier; k++) {
            const size_t row = (size_t)s->candidate[s->frontier[k]].row;
            add_children(e, s, s->frontier[k], e->id + row * best, e->log_p + row * best);
        }
        next_frontier(e, s, from);
    }
    return 0;
}

static void emit(struct eagle3 *e, struct eagle_slot *s, struct tree *out)
{
    int n = s->n_candidates < out->max_nodes ? s->n_candidates : out->max_nodes;
    for (int i = 0; i < n; i++)
        s->frontier[i] = i;
    if (e->shape == SHAPE_DYNAMIC)
        n = choose(e, s, 0, out->max_nodes, s->frontier);
    for (int i = 0; i < n; i++) {
        struct candidate *c = &s->candidate[s->frontier[i]];
        const double before = c->parent < 0 ? 0 : s->candidate[c->parent].score;
        c->node = tree_add(out, c->parent < 0 ? TREE_ROOT : s->candidate[c->parent].node, c->token,
                           (float)(c->score - before), NULL);
    }
}

static int eagle3_propose(void *self, const struct draft_text *text, int n, struct tree *out)
{
    struct eagle3 *e = self;
    TRY(catch_up(e, text, n));
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        s->n_candidates = s->n_frontier = s->n_cells = 0;
        if (s->n_true == 0 || out[i].max_nodes == 0 || out[i].max_depth == 0)
            continue;
        add_children(e, s, -1, s->root_id, s->root_log_p);
        next_frontier(e, s, 0);
    }
    for (int depth = 2; depth <= e->max_depth; depth++)
        TRY(grow(e, text, n, out, depth));
    for (int i = 0; i < n; i++)
        emit(e, &e->slot[text[i].slot], &out[i]);
    return 0;
}

const struct draft_ops draft_eagle3 = {.name = "eagle3",
                                       .help = "a small network on the target's features: draft.head",
                                       .needs = DRAFT_HOST | DRAFT_HIDDEN,
                                       .options = eagle3_options,
                                       .open = eagle3_open,
                                       .max_nodes = eagle3_max_nodes,
                                       .close = eagle3_close,
                                       .begin = eagle3_begin,
                                       .propose = eagle3_propose,
                                       .observe = eagle3_observe,
                                       .tap = eagle3_tap,
                                       .prefilled = eagle3_prefilled};
