/* loop_open: all memory of the loop, sized once. */
#include "engine/err.h"
#include "spec/loop_state.h"
#include <limits.h>
#include <math.h>
#include <stdlib.h>

enum { ROWS_MAX = 1 << 20 };

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

/* Zeroed memory for n >= 0 things; a failure is remembered, so that all can be asked for before one check. */
static void *take(struct spec *s, size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    s->bytes += n * size;
    s->starved |= !p;
    return p;
}

static int take_memory(struct spec *s)
{
    size_t slots = (size_t)s->opts.slots, depth = (size_t)s->opts.max_depth,
           nodes = (size_t)s->opts.max_nodes;
    struct pass *p = &s->pass;
    s->seq = take(s, slots, sizeof *s->seq);
    s->records = take(s, slots, sizeof *s->records);
    s->finished = take(s, slots, sizeof *s->finished);
    s->log_p = take(s, slots * (1 + depth), sizeof *s->log_p);
    s->nodes = take(s, slots * nodes, sizeof *s->nodes);
    p->slot = take(s, slots, sizeof *p->slot);
    p->tree = take(s, slots, sizeof *p->tree);
    p->text = take(s, slots, sizeof *p->text);
    p->seen = take(s, slots, sizeof *p->seen);
    p->accepted = take(s, slots, sizeof *p->accepted);
    p->path = take(s, slots * depth, sizeof *p->path);
    p->first_row = take(s, slots, sizeof *p->first_row);
    p->rows = take(s, slots * (1 + nodes), sizeof *p->rows);
    p->keep = take(s, 1 + depth, sizeof *p->keep);
    if (s->starved)
        FAIL(ERR_MEMORY, "decode loop: out of memory for %d sequences", s->opts.slots);
    for (size_t i = 0; i < slots; i++) {
        p->accepted[i].path = p->path + i * depth;
        s->seq[i].text = take(s, (size_t)s->opts.cap, sizeof *s->seq[i].text);
        if (s->starved)
            FAIL(ERR_MEMORY, "decode loop: out of memory for a text of %d tokens", s->opts.cap);
        TRY(tree_init(&p->tree[i], s->opts.max_nodes, s->opts.max_depth));
        TRY(stop_init(&s->seq[i].stop, &s->opts.stop));
        s->bytes += nodes * sizeof(struct tree_node) + (size_t)s->seq[i].stop.cap_tail;
    }
    return accept_scratch_init(&s->scratch, s->model->cfg.vocab);
}

/* Cells beyond the text's own: a tree's nodes, all of which need one while they are judged. */
static int open_target(struct spec *s)
{
    const struct spec_opts *o = &s->opts;
    size_t before = s->model->be->allocated;
    int step_rows = o->slots * (1 + o->max_nodes);
    TRY(kv_init(&s->kv, s->model->be, s->model, o->slots, s->limit + o->max_nodes));
    TRY(forward_init(&s->fwd, s->model, &s->kv, step_rows > s->prefill_block ? step_rows : s->prefill_block,
                     step_rows));
    s->bytes += s->model->be->allocated - before;
    return 0;
}

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
                            .seed = o->sampling.seed,
                            .option = o->draft_option,
                            .reference = o->draft->needs & DRAFT_REFERENCE ? o->reference : NULL,
                            .reference_ctx = o->reference_ctx};
    return o->draft->open(&s->draft, &env);
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
    int rc = take_memory(s);
    if (!rc)
        rc = open_target(s);
    if (!rc)
        rc = open_draft(s);
    s->opts.draft_option = NULL; /* lent for this call only */
    if (rc) {
        spec_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void spec_close(struct spec *s)
{
    if (!s)
        return;
    s->opts.draft->close(s->draft);
    forward_deinit(&s->fwd);
    kv_deinit(&s->kv);
    accept_scratch_deinit(&s->scratch);
    for (int i = 0; i < s->opts.slots; i++) {
        if (s->seq) {
            stop_deinit(&s->seq[i].stop);
            free(s->seq[i].text);
        }
        if (s->pass.tree)
            tree_deinit(&s->pass.tree[i]);
    }
    void *owned[] = {s->seq,       s->records,   s->finished,  s->log_p,         s->nodes,
                     s->pass.slot, s->pass.tree, s->pass.text, s->pass.seen,     s->pass.accepted,
                     s->pass.path, s->pass.rows, s->pass.keep, s->pass.first_row};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    free(s);
}

size_t spec_bytes(const struct spec *s)
{
    return s->bytes;
}
