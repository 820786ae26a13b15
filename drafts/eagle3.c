/* eagle3: a small network reads the target's features and drafts a tree (Li et al., arXiv 2503.01840;
 * model-formats D). Row t of its network pairs the features of position t with the token at t + 1. Its cache
 * keeps rows of the target's features alone; a tree's own rows take the cells behind them and are forgotten.
 * Choice is greedy, so no q. */
#include "drafts/drafts.h"
#include "engine/backend.h"
#include "engine/err.h"
#include "engine/head.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { OPT_SHAPE, OPT_TOP_K };
enum shape { SHAPE_CHAIN, SHAPE_STATIC, SHAPE_DYNAMIC };
enum { TOP_K_MAX = 32, BLOCK = 64 };

static const char *const shape_words[] = {"chain", "static", "dynamic", NULL};
static const struct draft_option eagle3_options[] = {
    [OPT_SHAPE] = {"shape",
                   "chain; static: rank r under weight w while w r <= top_k; dynamic: the most probable", 0,
                   0, 2, 1, shape_words},
    [OPT_TOP_K] = {"top_k", "children of a node and, dynamic, nodes of a level that go on", 10, 1, TOP_K_MAX,
                   1, NULL},
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
    float *pending;              /* owned [max_depth + 1, 3, width]: features of positions not run yet */
    float *g, *logits;           /* owned: of the last true row */
};

struct eagle3 {
    struct head head;
    struct head_pass pass;
    struct draft_hidden *hidden; /* borrowed: the loop's */
    int slots, max_depth, max_nodes, top_k, max_frontier, max_candidates;
    enum shape shape;
    struct eagle_slot *slot; /* owned [slots] */
    struct head_row *row;    /* owned [max_rows] */
    int *paths;              /* owned [max_rows, max_depth] */
    float *next_g;           /* owned [slots, max_candidates, hidden]: h of candidates that were run */
    int *order;              /* owned [max_candidates] */
};

static void eagle3_close(void *self)
{
    struct eagle3 *e = self;
    if (!e)
        return;
    for (int i = 0; e->slot && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        void *owned[] = {s->candidate, s->frontier, s->pending_token, s->pending, s->g, s->logits};
        for (size_t k = 0; k < sizeof owned / sizeof *owned; k++)
            free(owned[k]);
    }
    head_pass_deinit(&e->pass);
    head_close(&e->head);
    free(e->slot);
    free(e->row);
    free(e->paths);
    free(e->next_g);
    free(e->order);
    free(e);
}

static void *take(size_t n, size_t size)
{
    return calloc(n ? n : 1, size);
}

static int take_memory(struct eagle3 *e)
{
    const struct head_config *c = &e->head.cfg;
    const size_t cand = (size_t)e->max_candidates, deep = (size_t)e->max_depth + 1,
                 rows = (size_t)e->pass.max_rows;
    int ok = 1;
    e->slot = take((size_t)e->slots, sizeof *e->slot);
    e->row = take(rows, sizeof *e->row);
    e->paths = take(rows * deep, sizeof *e->paths);
    e->next_g = take((size_t)e->slots * cand * (size_t)c->hidden, sizeof(float));
    e->order = take(cand, sizeof *e->order);
    ok = e->slot && e->row && e->paths && e->next_g && e->order;
    for (int i = 0; ok && i < e->slots; i++) {
        struct eagle_slot *s = &e->slot[i];
        s->candidate = take(cand, sizeof *s->candidate);
        s->frontier = take(cand, sizeof *s->frontier);
        s->pending_token = take(deep, sizeof *s->pending_token);
        s->pending = take(deep * HEAD_TAPS * (size_t)c->target_hidden, sizeof(float));
        s->g = take((size_t)c->hidden, sizeof(float));
        s->logits = take((size_t)c->vocab, sizeof(float));
        ok = s->candidate && s->frontier && s->pending_token && s->pending && s->g && s->logits;
    }
    if (!ok)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory for trees of %d sequences", e->slots);
    return 0;
}

static int open_all(struct eagle3 *e, const struct draft_env *env)
{
    TRY_CTX(head_open(&e->head, env->target, env->head, MODEL_BF16), "draft.head");
    const int k = e->shape == SHAPE_CHAIN ? 1 : e->top_k, deep = env->max_depth;
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
                         .max_nodes = env->max_depth > 0 ? env->max_nodes : 0,
                         .top_k = (int)env->option[OPT_TOP_K],
                         .shape = (enum shape)env->option[OPT_SHAPE]};
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

/* The k largest, best first, the lower id among equals. */
static void best_ids(const float *logits, int vocab, int k, int *id)
{
    int n = 0;
    for (int v = 0; v < vocab; v++) {
        int at = n < k ? n++ : k;
        if (at == k && !(logits[v] > logits[id[k - 1]]))
            continue;
        at = at == k ? k - 1 : at;
        for (; at > 0 && logits[v] > logits[id[at - 1]]; at--)
            id[at] = id[at - 1];
        id[at] = v;
    }
}

static double log_sum(const float *logits, int vocab, float most)
{
    double sum = 0;
    for (int v = 0; v < vocab; v++)
        sum += exp((double)logits[v] - (double)most);
    return (double)most + log(sum);
}

static void add_children(const struct eagle3 *e, struct eagle_slot *s, int parent, const float *logits)
{
    int id[TOP_K_MAX] = {0};
    const struct candidate *p = parent < 0 ? NULL : &s->candidate[parent];
    const int weight = p ? p->weight : 1;
    const int k = e->shape == SHAPE_CHAIN ? 1 : e->shape == SHAPE_STATIC ? e->top_k / weight : e->top_k;
    if (k == 0)
        return;
    best_ids(logits, e->head.cfg.vocab, k, id);
    const double lse = log_sum(logits, e->head.cfg.vocab, logits[id[0]]);
    for (int r = 0; r < k && s->n_candidates < e->max_candidates; r++)
        s->candidate[s->n_candidates++] =
            (struct candidate){.token = e->head.d2t[id[r]],
                               .parent = parent,
                               .depth = p ? p->depth + 1 : 1,
                               .weight = weight * (r + 1),
                               .score = (p ? p->score : 0) + (double)logits[id[r]] - lse};
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
    const size_t hidden = (size_t)e->head.cfg.hidden;
    int *path = e->paths + (size_t)row * (size_t)(e->max_depth + 1);
    const float *g =
        c->parent < 0 ? s->g
                      : e->next_g + ((size_t)slot * (size_t)e->max_candidates + (size_t)c->parent) * hidden;
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
    memcpy(e->pass.x + (size_t)row * hidden, g, hidden * sizeof *g);
}

/* One level deeper in every tree that has room for it. */
static int grow(struct eagle3 *e, const struct draft_text *text, int n, const struct tree *out, int depth)
{
    const size_t hidden = (size_t)e->head.cfg.hidden, vocab = (size_t)e->head.cfg.vocab;
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
    TRY(head_pass_run(&e->pass, e->row, rows, 0));
    for (int i = 0; i < n; i++) {
        struct eagle_slot *s = &e->slot[text[i].slot];
        const int from = s->n_candidates;
        for (int k = 0; k < s->n_frontier; k++) {
            const int index = s->frontier[k], row = s->candidate[index].row;
            memcpy(e->next_g + ((size_t)text[i].slot * (size_t)e->max_candidates + (size_t)index) * hidden,
                   e->pass.x + (size_t)row * hidden, hidden * sizeof(float));
            add_children(e, s, index, e->pass.logits + (size_t)row * vocab);
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
        add_children(e, s, -1, s->logits);
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
