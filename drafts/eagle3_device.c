/* eagle3_device: the same drafts as eagle3.c's, by operations that the host enqueues and does not wait for:
 * the network's passes are those of engine/head.h, what stands between them is kernels/grow.h. The envelope
 * of a pass is fixed: room for all that a step can make true, and for all nodes of a level that can go on;
 * what is not needed are dead rows. Cost of a step: max_depth reads of the head's weights. */
#include "drafts/eagle3.h"
#include "drafts/eagle3_tree.h"
#include "engine/backend.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 64 };

struct eagle3_device {
    struct backend *be; /* borrowed */
    struct head head;
    struct head_pass pass;
    struct draft_hidden *hidden;           /* borrowed: the loop's */
    int slots, max_depth, max_nodes, rows; /* rows: the largest envelope */
    struct grow grow;
    float *x[2]; /* backend [max_rows, hidden]: what a pass writes and what the one before left; the first is
                    pass.x after open */
    float *root; /* backend [slots, hidden]: g after each slot's last true row */
    int *root_id, *id;         /* backend: of grow, */
    float *root_log_p, *log_p; /* as the network fills them */
    int *prompt_from; /* backend [the larger of BLOCK and slots]: rows that a pass of prefill reads and leaves
                       */
    int *numbers;     /* owned [as many] on their way there */
    struct head_row row[BLOCK];
};

static void device_close(void *self)
{
    struct eagle3_device *e = self;
    if (!e)
        return;
    struct grow *g = &e->grow;
    void *const lent[] = {g->serial, g->last,        g->list, g->n,       g->n_frontier, g->frontier,
                          g->token,  g->slot,        g->pos,  g->cell,    g->base,       g->path_off,
                          g->path,   g->from,        e->root, e->root_id, e->id,         e->root_log_p,
                          e->log_p,  e->prompt_from, e->x[1]};
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        e->be->ops->release(e->be, lent[i]);
    if (e->x[0])
        e->pass.x = e->x[0];
    head_pass_deinit(&e->pass);
    head_close(&e->head);
    free(e->numbers);
    free(e);
}

static int take_rows(struct eagle3_device *e)
{
    struct grow *g = &e->grow;
    int **const of_rows[] = {&g->token, &g->slot, &g->pos, &g->cell, &g->base, &g->path_off, &g->from};
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        TRY(backend_take(e->be, (size_t)e->rows, sizeof(int), of_rows[i]));
    return backend_take(e->be, (size_t)e->rows * (size_t)e->max_depth, sizeof(int), &g->path);
}

static int take_state(struct eagle3_device *e)
{
    struct grow *g = &e->grow;
    const size_t slots = (size_t)e->slots, width = slots * (size_t)g->width, k = (size_t)g->top_k,
                 hidden = (size_t)e->head.cfg.hidden;
    const int numbers = BLOCK > e->slots ? BLOCK : e->slots;
    e->numbers = calloc((size_t)numbers, sizeof *e->numbers);
    if (!e->numbers)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory");
    TRY(backend_take(e->be, slots, sizeof *g->serial, &g->serial));
    TRY(backend_take(e->be, slots, sizeof *g->last, &g->last));
    TRY(backend_take(e->be, slots * (size_t)g->max_candidates, sizeof *g->list, &g->list));
    TRY(backend_take(e->be, slots, sizeof *g->n, &g->n));
    TRY(backend_take(e->be, slots, sizeof *g->n_frontier, &g->n_frontier));
    TRY(backend_take(e->be, width, sizeof *g->frontier, &g->frontier));
    TRY(backend_take(e->be, slots * hidden, sizeof *e->root, &e->root));
    TRY(backend_take(e->be, slots * k, sizeof *e->root_id, &e->root_id));
    TRY(backend_take(e->be, slots * k, sizeof *e->root_log_p, &e->root_log_p));
    TRY(backend_take(e->be, width * k, sizeof *e->id, &e->id));
    TRY(backend_take(e->be, width * k, sizeof *e->log_p, &e->log_p));
    TRY(backend_take(e->be, (size_t)e->pass.max_rows * hidden, sizeof *e->x[1], &e->x[1]));
    TRY(backend_take(e->be, (size_t)numbers, sizeof *e->prompt_from, &e->prompt_from));
    e->x[0] = e->pass.x;
    g->root_id = e->root_id;
    g->root_log_p = e->root_log_p;
    g->id = e->id;
    g->log_p = e->log_p;
    return 0;
}

/* How trees grow; the names of the shapes are eagle3_tree's. */
static int open_grow(struct eagle3_device *e, const struct draft_env *env)
{
    struct grow *g = &e->grow;
    const enum eagle3_shape shape = (enum eagle3_shape)env->option[EAGLE3_SHAPE];
    TRY(eagle3_top_k(env, &e->head, &g->top_k));
    g->shape = shape == EAGLE3_CHAIN ? GROW_FIRST : shape == EAGLE3_STATIC ? GROW_STATIC : GROW_DYNAMIC;
    g->width = eagle3_width(shape, g->top_k, e->max_nodes);
    g->max_candidates = grow_candidates(g->top_k, g->width, e->max_depth);
    if (shape == EAGLE3_DYNAMIC && g->max_candidates > GROW_CUDA_CANDIDATES)
        FAIL(ERR_LIMIT,
             "draft 'eagle3': top_k %d and max_depth %d: expected at most %d candidates of a tree, found %d",
             g->top_k, e->max_depth, GROW_CUDA_CANDIDATES, g->max_candidates);
    return 0;
}

static int open_all(struct eagle3_device *e, const struct draft_env *env)
{
    TRY(eagle3_open_head(&e->head, env));
    TRY(open_grow(e, env));
    const int trues = e->slots * (1 + e->max_depth), wide = e->slots * e->grow.width;
    e->rows = trues > wide ? trues : wide;
    TRY(head_pass_init(&e->pass, &e->head, e->slots, env->cap + 1 + e->max_depth * e->grow.width,
                       e->rows > BLOCK ? e->rows : BLOCK, 1));
    TRY(take_rows(e));
    return take_state(e);
}

static int device_open(void **self, const struct draft_env *env)
{
    *self = NULL;
    struct eagle3_device *e = calloc(1, sizeof *e);
    if (!e)
        FAIL(ERR_MEMORY, "draft 'eagle3': out of memory");
    e->be = env->be;
    e->slots = env->slots;
    e->max_depth = env->max_depth;
    e->max_nodes = eagle3_nodes(env);
    const int rc = open_all(e, env);
    if (rc)
        device_close(e);
    else
        *self = e;
    return rc;
}

static int device_max_nodes(const void *self)
{
    const struct eagle3_device *e = self;
    return e->max_nodes;
}

static void device_tap(void *self, struct draft_hidden *hidden)
{
    struct eagle3_device *e = self;
    memcpy(hidden->layer, e->head.cfg.layer, sizeof hidden->layer);
    e->hidden = hidden;
}

static int best_ids(struct eagle3_device *e, const int *from, int rows, int *id, float *log_p)
{
    const struct top a = {.logits = e->pass.logits,
                          .from = from,
                          .map = e->head.ids,
                          .id = id,
                          .log_p = log_p,
                          .rows = rows,
                          .vocab = e->head.cfg.vocab,
                          .k = e->grow.top_k};
    return e->be->ops->top(e->be, &a);
}

static int gather(struct eagle3_device *e, const float *x, const int *from, float *y, int rows)
{
    const int dim = e->head.cfg.hidden;
    const struct gather a = {.x = x, .from = from, .y = y, .k = dim, .rows = rows, .dim = dim, .threads = 1};
    return e->be->ops->gather(e->be, &a);
}

/* The next trees start from these rows of the pass, one of each slot; -1: from where they started before. */
static int keep_roots(struct eagle3_device *e, const int *row)
{
    TRY(gather(e, e->pass.x, row, e->root, e->slots));
    return best_ids(e, row, e->slots, e->root_id, e->root_log_p);
}

static int send_numbers(struct eagle3_device *e, int n)
{
    return e->be->ops->upload(e->be, e->prompt_from, e->numbers, (size_t)n * sizeof *e->numbers);
}

/* Of all but the last row the keys and values are wanted, and nothing else. */
static int device_prefilled(void *self, int slot, const int *tokens, int at, int n)
{
    struct eagle3_device *e = self;
    e->pass.x = e->x[0];
    e->pass.source.rows = e->hidden->prompt;
    e->pass.source.plane = e->hidden->max_prompt_rows;
    e->pass.source.from = e->prompt_from;
    for (int done = 0, block; done < n; done += block) {
        block = n - done < BLOCK ? n - done : BLOCK;
        const int is_last = done + block == n;
        for (int i = 0; i < block; i++) {
            e->row[i] = eagle3_true_row(slot, at + done + i, tokens[done + i + 1]);
            e->numbers[i] = done + i;
        }
        TRY(send_numbers(e, block));
        TRY(head_pass_start(&e->pass, e->row, block, HEAD_FEATURES | (is_last ? 0 : HEAD_CACHE)));
        for (int i = 0; i < e->slots; i++)
            e->numbers[i] = i == slot ? block - 1 : -1;
        if (is_last) {
            TRY(send_numbers(e, e->slots));
            TRY(keep_roots(e, e->prompt_from));
        }
    }
    return 0;
}

static struct rows rows_of(const struct eagle3_device *e, int n)
{
    const struct grow *g = &e->grow;
    return (struct rows){n, g->token, g->slot, g->pos, g->cell, g->base, g->path_off, g->path};
}

/* What the step before made true, with the target's features. */
static int run_true(struct eagle3_device *e, int reach)
{
    const struct rows rows = rows_of(e, e->slots * (1 + e->max_depth));
    e->pass.source.rows = e->hidden->rows;
    e->pass.source.plane = e->hidden->max_rows;
    e->pass.source.from = e->grow.from;
    TRY(head_pass_enqueue(&e->pass, &rows, reach, HEAD_FEATURES));
    return keep_roots(e, e->grow.last);
}

/* The rows that a level laid go on from the roots or from the pass before. */
static int run_level(struct eagle3_device *e, int level, int reach)
{
    const struct rows rows = rows_of(e, e->slots * e->grow.width);
    const float *before = e->pass.x;
    e->pass.x = e->x[level % 2];
    TRY(gather(e, level == 1 ? e->root : before, e->grow.from, e->pass.x, rows.n));
    TRY(head_pass_enqueue(&e->pass, &rows, reach, 0));
    return best_ids(e, NULL, rows.n, e->id, e->log_p);
}

static int device_enqueue(void *self, const struct step *step, int reach)
{
    struct eagle3_device *e = self;
    const struct backend_ops *ops = e->be->ops;
    const int seen = reach < e->pass.kv.cap ? reach : e->pass.kv.cap;
    if (e->max_nodes == 0)
        return 0;
    e->grow.step = step;
    e->pass.x = e->x[0];
    TRY(ops->grow_true(e->be, &e->grow));
    TRY(run_true(e, seen));
    for (int level = 1; level <= e->max_depth; level++) {
        TRY(ops->grow_level(e->be, &e->grow, level));
        if (level < e->max_depth)
            TRY(run_level(e, level, seen));
    }
    return 0;
}

const struct draft_ops draft_eagle3_device = {.name = "eagle3",
                                              .help = "eagle3 in the memory of the backend",
                                              .needs = DRAFT_HIDDEN,
                                              .open = device_open,
                                              .max_nodes = device_max_nodes,
                                              .close = device_close,
                                              .enqueue = device_enqueue,
                                              .tap = device_tap,
                                              .prefilled = device_prefilled};
