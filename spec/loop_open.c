/* loop_open: all memory of the loop, sized once. */
#include "engine/clock.h"
#include "engine/err.h"
#include "spec/loop_state.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>

enum { CLOCK_TRIES = 4, ROWS_MAX = 1 << 20 };

static int check_sampling(const struct spec_opts *o)
{
    const struct sampling *s = &o->sampling;
    if (!isfinite(s->temperature) || s->temperature < 0)
        FAIL(ERR_CONFIG, "sampling temperature: expected a number >= 0, found %g", (double)s->temperature);
    if (s->top_k < 0)
        FAIL(ERR_CONFIG, "sampling top_k: expected a number >= 0 (0: off), found %d", s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        FAIL(ERR_CONFIG, "sampling top_p: expected a number above 0 and up to 1, found %g", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        FAIL(ERR_CONFIG, "sampling min_p: expected a number from 0 to 1, found %g", (double)s->min_p);
    if (o->rule->lossy && s->relaxed_top_k < 1)
        FAIL(ERR_CONFIG, "sampling relaxed_top_k: expected a number >= 1, found %d", s->relaxed_top_k);
    if (o->rule->lossy && !(s->relaxed_delta >= 0 && s->relaxed_delta <= 1))
        FAIL(ERR_CONFIG, "sampling relaxed_delta: expected a number from 0 to 1, found %g",
             (double)s->relaxed_delta);
    return 0;
}

static int check_sizes(const struct spec_opts *o)
{
    if (o->slots < 1 || o->max_depth < 0 || o->max_nodes < 0 || o->prefill_block < 0)
        FAIL(ERR_CONFIG,
             "expected at least 1 sequence and no negative size, found %d sequences, max_depth %d, max_nodes "
             "%d, "
             "prefill block %d",
             o->slots, o->max_depth, o->max_nodes, o->prefill_block);
    if (o->cap < 2 || o->cap > INT_MAX / 2)
        FAIL(ERR_CONFIG, "length of a text: expected 2 to %d tokens, found %d", INT_MAX / 2, o->cap);
    if (o->max_nodes >= ROWS_MAX || o->slots > ROWS_MAX / (1 + o->max_nodes))
        FAIL(ERR_LIMIT, "rows of a step: expected at most %d, found %d sequences with trees of %d nodes",
             ROWS_MAX, o->slots, o->max_nodes);
    return 0;
}

static int check_draft_options(const struct spec_opts *o)
{
    for (int i = 0; o->draft->options[i].name; i++) {
        const struct draft_option *d = &o->draft->options[i];
        double v = o->draft_option[i];
        if (!(v >= d->lo && v <= d->hi) || (d->integer && v != floor(v)))
            FAIL(ERR_CONFIG, "draft option '%s.%s': expected %s from %g to %g, found %g", o->draft->name,
                 d->name, d->integer ? "a whole number" : "a number", d->lo, d->hi, v);
    }
    return 0;
}

/* First of all, because memory and launches follow what its trees can hold. */
static int open_draft(struct spec *s)
{
    const struct spec_opts *o = &s->opts;
    struct draft_env env = {.be = s->model->be,
                            .target = s->model,
                            .slots = o->slots,
                            .cap = s->limit,
                            .vocab = s->model->cfg.vocab,
                            .max_depth = o->max_depth,
                            .max_nodes = o->max_nodes,
                            .head = o->head,
                            .seed = o->sampling.seed,
                            .rule = o->rule->kind,
                            .sampling = &o->sampling,
                            .option = o->draft_option,
                            .reference = o->draft->needs & DRAFT_REFERENCE ? o->reference : NULL,
                            .reference_ctx = o->reference_ctx};
    const struct draft_ops *other = o->draft->pick ? o->draft->pick(&env) : NULL;
    if (other)
        s->opts.draft = other;
    TRY(o->draft->open(&s->draft, &env));
    s->opts.max_nodes = o->draft->max_nodes(s->draft);
    return 0;
}

/* Zeroed memory for n >= 0 things; a failure is remembered, so that all can be asked for before one check. */
static void *take(struct spec *s, size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    s->bytes += n * size;
    s->starved |= !p;
    return p;
}

static int take_host_draft(struct spec *s)
{
    const size_t slots = (size_t)s->opts.slots, nodes = (size_t)s->opts.max_nodes;
    struct host_draft *h = &s->host;
    if (!(s->opts.draft->needs & DRAFT_HOST))
        return 0;
    h->tree = take(s, slots, sizeof *h->tree);
    h->text = take(s, slots, sizeof *h->text);
    h->seen = take(s, slots, sizeof *h->seen);
    h->staging = take(s, loop_trees_ints(&s->opts), sizeof *h->staging);
    if (s->starved)
        FAIL(ERR_MEMORY, "decode loop: out of memory for the trees of %d sequences", s->opts.slots);
    for (size_t i = 0; i < slots; i++)
        TRY(tree_init(&h->tree[i], s->opts.max_nodes, s->opts.max_depth));
    s->bytes += slots * nodes * sizeof(struct tree_node);
    return 0;
}

static int take_memory(struct spec *s)
{
    const size_t slots = (size_t)s->opts.slots, nodes = (size_t)s->opts.max_nodes;
    s->seq = take(s, slots, sizeof *s->seq);
    s->records = take(s, slots, sizeof *s->records);
    s->finished = take(s, slots, sizeof *s->finished);
    s->nodes_of = take(s, slots * nodes, sizeof *s->nodes_of);
    if (s->starved)
        FAIL(ERR_MEMORY, "decode loop: out of memory for %d sequences", s->opts.slots);
    for (size_t i = 0; i < slots; i++) {
        s->seq[i].text = take(s, (size_t)s->opts.cap, sizeof *s->seq[i].text);
        if (s->starved)
            FAIL(ERR_MEMORY, "decode loop: out of memory for a text of %d tokens", s->opts.cap);
        TRY(stop_init(&s->seq[i].stop, &s->opts.stop));
        s->bytes += (size_t)s->seq[i].stop.cap_tail;
    }
    return take_host_draft(s);
}

/* Where what rows chose is arranged as records have it. */
static int take_chosen(struct spec *s)
{
    const size_t chosen = (size_t)s->fwd.moe_layers * (size_t)s->model->cfg.top_k;
    if (chosen == 0 || s->opts.trace != TRACE_FULL)
        return 0;
    s->chosen = take(s, (size_t)s->opts.slots * (1 + (size_t)s->opts.max_nodes) * chosen, sizeof *s->chosen);
    if (!s->chosen)
        FAIL(ERR_MEMORY, "decode loop: out of memory for the experts of %d sequences", s->opts.slots);
    return 0;
}

static int open_tap(struct spec *s, struct forward_tap *tap, int rows)
{
    struct backend *be = s->model->be;
    void *out = NULL;
    TRY(be->ops->alloc(be, FORWARD_TAPS * (size_t)rows * (size_t)s->model->cfg.hidden * sizeof(float), &out));
    *tap = (struct forward_tap){.out = out, .rows = rows};
    return 0;
}

/* The features of every pass, and passes of prefill that are told of one by one. */
static int open_taps(struct spec *s)
{
    struct draft_hidden *h = &s->hidden;
    s->prefill_block = s->fwd.max_rows;
    TRY(open_tap(s, &s->tap_step, s->fwd.max_logit_rows));
    TRY(open_tap(s, &s->tap_prefill, s->fwd.max_rows));
    *h = (struct draft_hidden){.rows = s->tap_step.out,
                               .prompt = s->tap_prefill.out,
                               .max_rows = s->tap_step.rows,
                               .max_prompt_rows = s->tap_prefill.rows};
    s->opts.draft->tap(s->draft, h);
    for (int t = 0; t < FORWARD_TAPS; t++)
        s->tap_step.layer[t] = s->tap_prefill.layer[t] = h->layer[t];
    s->fwd.tap = s->tap_step;
    return 0;
}

/* Cells beyond the text's own: a tree's nodes, all of which need one while they are judged. */
static int open_target(struct spec *s)
{
    const struct spec_opts *o = &s->opts;
    const int step_rows = o->slots * (1 + o->max_nodes);
    TRY(kv_init(&s->kv, s->model->be, s->model, o->slots, s->limit + o->max_nodes));
    TRY(forward_init(&s->fwd, s->model, &s->kv, step_rows > s->prefill_block ? step_rows : s->prefill_block,
                     step_rows));
    return o->draft->needs & DRAFT_HIDDEN ? open_taps(s) : 0;
}

/* One block of backend memory, shared out: with base NULL only its size is found. */
struct share {
    char *base;
    size_t at;
};

static void *share_out(struct share *m, size_t n, size_t size)
{
    void *p = m->base ? m->base + m->at : NULL;
    m->at += (n * size + 63) / 64 * 64;
    return p;
}

static int *ints(struct share *m, size_t n)
{
    return share_out(m, n, sizeof(int));
}

static float *floats(struct share *m, size_t n)
{
    return share_out(m, n, sizeof(float));
}

static void share_trees(struct spec *s, struct share *m)
{
    const size_t slots = (size_t)s->opts.slots, all = slots * (size_t)s->opts.max_nodes;
    int *at = s->trees = ints(m, loop_trees_ints(&s->opts));
    struct trees *t = &s->step.trees;
    *t = (struct trees){
        .slots = s->opts.slots, .max_nodes = s->opts.max_nodes, .max_depth = s->opts.max_depth};
    if (s->opts.draft->needs & DRAFT_Q && s->opts.draft->draws(s->draft))
        t->q = floats(m, all * (size_t)s->model->cfg.vocab);
    if (!at)
        return;
    t->n = at;
    t->token = at + slots;
    t->parent = t->token + all;
    t->depth = t->parent + all;
    t->q_row = t->depth + all;
    t->log_q = (float *)(t->q_row + all);
}

static void share_step(struct spec *s, struct share *m)
{
    const size_t slots = (size_t)s->opts.slots, deep = (size_t)s->opts.max_depth,
                 all = slots * (size_t)s->opts.max_nodes;
    const size_t rows = slots + all;
    struct step *st = &s->step;
    st->cap = s->limit;
    st->max_rows = (int)rows;
    st->seq = share_out(m, slots, sizeof *st->seq);
    st->text = ints(m, slots * (size_t)s->limit);
    st->clock = share_out(m, STEP_CLOCKS, sizeof *st->clock);
    st->count = ints(m, 2);
    int **of_rows[] = {&st->token, &st->slot, &st->pos, &st->cell, &st->base, &st->path_off};
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        *of_rows[i] = ints(m, rows);
    st->path = ints(m, rows * (1 + deep));
    int **of_slots[] = {&st->first_row, &st->accepted, &st->bonus};
    for (size_t i = 0; i < sizeof of_slots / sizeof *of_slots; i++)
        *of_slots[i] = ints(m, slots);
    st->accepted_path = ints(m, slots * deep);
    st->emitted_log_p = floats(m, slots * (1 + deep));
    st->log_p = floats(m, all);
    st->entropy = floats(m, all);
    st->gap = floats(m, all);
    st->rank = ints(m, all);
}

/* Everything that `step` and `commit` point to, and its size. */
static size_t share_memory(struct spec *s, void *base, void **layers, void **stop)
{
    struct share m = {.base = base};
    share_trees(s, &m);
    share_step(s, &m);
    s->commit.counter = share_out(&m, 1, sizeof *s->commit.counter);
    *layers = share_out(&m, (size_t)s->kv.n_layers, sizeof *s->kv.layers);
    *stop = ints(&m, (size_t)s->opts.stop.n_tokens);
    return m.at;
}

static int open_memory(struct spec *s)
{
    struct backend *be = s->model->be;
    void *layers, *stop, *clock = NULL;
    const struct step_experts experts = {.chosen = s->fwd.experts,
                                         .layers = s->fwd.moe_layers,
                                         .top_k = s->model->cfg.top_k,
                                         .with_ids = s->opts.trace == TRACE_FULL};
    const size_t bytes = share_memory(s, NULL, &layers, &stop),
                 entry = step_entry_bytes(&s->step.trees, &experts);
    TRY(be->ops->alloc(be, bytes, &s->memory));
    share_memory(s, s->memory, &layers, &stop);
    TRY(be->ops->upload(be, layers, s->kv.layers, (size_t)s->kv.n_layers * sizeof *s->kv.layers));
    if (s->opts.stop.n_tokens > 0)
        TRY(be->ops->upload(be, stop, s->opts.stop.tokens, (size_t)s->opts.stop.n_tokens * sizeof(int)));
    TRY(be->ops->alloc_host(be, LOOP_RING * entry, &s->ring));
    TRY(be->ops->alloc_host(be, 2 * (size_t)s->opts.slots * sizeof(int64_t), &clock));
    s->prefill_clock = clock;
    s->bytes += LOOP_RING * entry;
    s->commit = (struct step_commit){.step = &s->step,
                                     .stop = stop,
                                     .layers = layers,
                                     .n_stop = s->opts.stop.n_tokens,
                                     .n_layers = s->kv.n_layers,
                                     .kv_heads = s->model->part.kv_heads,
                                     .with_nodes = s->opts.trace != TRACE_STEPS,
                                     .experts = experts,
                                     .ring = s->ring,
                                     .depth = LOOP_RING,
                                     .counter = s->commit.counter};
    return 0;
}

static int open_accept(struct spec *s)
{
    struct backend *be = s->model->be;
    const struct step *st = &s->step;
    const int vocab = s->model->cfg.vocab;
    TRY(be->ops->alloc(be, be->ops->accept_bytes(be, s->opts.slots, s->opts.max_nodes, vocab),
                       &s->accept_scratch));
    s->accept = (struct accept){.kind = s->opts.rule->kind,
                                .sampling = s->opts.sampling,
                                .seq = st->seq,
                                .trees = &st->trees,
                                .first_row = st->first_row,
                                .logits = s->fwd.logits,
                                .stats = s->fwd.stats,
                                .vocab = vocab,
                                .accepted = st->accepted,
                                .path = st->accepted_path,
                                .bonus = st->bonus,
                                .began = &st->clock[STEP_ACCEPT],
                                .scratch = s->accept_scratch};
    s->stats = (struct node_stats){.trees = &st->trees,
                                   .first_row = st->first_row,
                                   .accepted = st->accepted,
                                   .path = st->accepted_path,
                                   .bonus = st->bonus,
                                   .logits = s->fwd.logits,
                                   .stats = s->fwd.stats,
                                   .vocab = vocab,
                                   .with_nodes = s->opts.trace != TRACE_STEPS,
                                   .log_p = st->log_p,
                                   .rank = st->rank,
                                   .entropy = st->entropy,
                                   .gap = st->gap,
                                   .path_log_p = st->emitted_log_p};
    return 0;
}

/* The device's clock is read between two looks at the host's, a few times. */
static int open_clock(struct spec *s)
{
    struct backend *be = s->model->be;
    int64_t least = INT64_MIN, most = INT64_MAX;
    for (int i = 0; i < CLOCK_TRIES; i++) {
        const int64_t before = clock_ns();
        TRY(be->ops->stamp(be, s->prefill_clock));
        TRY(be->ops->sync(be));
        const int64_t after = clock_ns(), at = s->prefill_clock[0];
        least = before - at > least ? before - at : least;
        most = after - at < most ? after - at : most;
    }
    s->clock_offset = least + (most - least) / 2;
    s->last_end = s->prefill_clock[0];
    return 0;
}

static int open_device(struct spec *s)
{
    const size_t before = s->model->be->allocated;
    TRY(open_target(s));
    TRY(take_chosen(s));
    TRY(open_memory(s));
    TRY(open_accept(s));
    TRY(open_clock(s));
    s->bytes += s->model->be->allocated - before;
    return 0;
}

int spec_open(struct spec **out, struct model *m, const struct spec_opts *opts)
{
    TRY(check_sizes(opts));
    TRY(check_sampling(opts));
    TRY(check_draft_options(opts));
    struct spec *s = calloc(1, sizeof *s);
    if (!s)
        FAIL(ERR_MEMORY, "decode loop: out of memory");
    s->model = m;
    s->opts = *opts;
    s->bytes = sizeof *s;
    s->limit = opts->cap < m->cfg.max_positions ? opts->cap : m->cfg.max_positions;
    s->prefill_block = opts->prefill_block              ? opts->prefill_block
                       : m->be->prefill_rows < s->limit ? m->be->prefill_rows
                                                        : s->limit;
    int rc = open_draft(s);
    if (!rc)
        rc = take_memory(s);
    if (!rc)
        rc = open_device(s);
    s->opts.draft_option = NULL; /* lent for this call only */
    s->opts.head = NULL;
    if (rc) {
        spec_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

static void close_device(struct spec *s)
{
    struct backend *be = s->model->be;
    void *const lent[] = {s->memory,         s->ring,         s->prefill_clock,
                          s->accept_scratch, s->tap_step.out, s->tap_prefill.out};
    if (!s->failed)
        be->ops->sync(be); /* steps may be under way that nobody waits for */
    be->ops->pass_forget(be, s);
    for (size_t i = 0; i < sizeof lent / sizeof *lent; i++)
        be->ops->release(be, lent[i]);
    forward_deinit(&s->fwd);
    kv_deinit(&s->kv);
}

void spec_close(struct spec *s)
{
    if (!s)
        return;
    close_device(s);
    s->opts.draft->close(s->draft);
    for (int i = 0; i < s->opts.slots; i++) {
        if (s->seq) {
            stop_deinit(&s->seq[i].stop);
            free(s->seq[i].text);
        }
        if (s->host.tree)
            tree_deinit(&s->host.tree[i]);
    }
    void *owned[] = {s->seq,       s->records,   s->finished,  s->nodes_of,    s->chosen,
                     s->host.tree, s->host.text, s->host.seen, s->host.staging};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    free(s);
}

size_t spec_bytes(const struct spec *s)
{
    return s->bytes;
}
