/* One pass over /steps in pieces of PIECE rows, each with the nodes that belong to it: a file of any length
 * takes a few MB beside what is kept. Nodes of consecutive steps lie one behind the other, as every writer of
 * this format has left them. */
#include "experiments/trace_lean.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include "experiments/trace_check.h"
#include <stdlib.h>
#include <string.h>

enum { PIECE = 16384 };

/* What a pass over the file holds. */
struct reader {
    struct trace *t;
    struct record_file *f;
    struct trace_step *steps; /* owned [PIECE] */
    struct trace_node *nodes; /* owned [cap_nodes] those of the piece */
    int64_t cap_nodes, cap_judged;
    int64_t *seen, *emitted; /* owned [n_requests] steps and tokens so far */
};

static int check_owner(struct reader *r, int64_t i, const struct trace_step *s)
{
    const struct trace *t = r->t;
    const struct trace_request *q = &t->requests[s->request];
    if (i < q->step_begin || i - q->step_begin >= q->steps)
        FAIL(ERR_FORMAT,
             "%s: /steps row %lld: expected a row of request %lld, which has %lld from %lld on; another "
             "request's step",
             t->path, (long long)i, (long long)s->request, (long long)q->steps, (long long)q->step_begin);
    if (s->proposed > TRACE_LEAN_MAX || s->emitted > TRACE_LEAN_MAX || s->pass_seqs > TRACE_LEAN_MAX ||
        s->pass_rows > TRACE_LEAN_MAX || s->expert_layers > TRACE_LEAN_MAX)
        FAIL(ERR_FORMAT,
             "%s: /steps row %lld: expected at most %d nodes, tokens, sequences, rows and layers of experts, "
             "found %d, %d, %d, %d and %d",
             t->path, (long long)i, TRACE_LEAN_MAX, s->proposed, s->emitted, s->pass_seqs, s->pass_rows,
             s->expert_layers);
    r->seen[s->request]++;
    r->emitted[s->request] += s->emitted;
    return 0;
}

static void keep(struct trace_lean *to, const struct trace_step *s, int64_t judged)
{
    *to = (struct trace_lean){.ns_total = s->ns_total,
                              .judged_begin = judged,
                              .ns_draft = (float)s->ns_draft,
                              .ns_verify = (float)s->ns_verify,
                              .ns_accept = (float)s->ns_accept,
                              .ns_host = (float)s->ns_host,
                              .position = s->position,
                              .pass_rows = (uint16_t)s->pass_rows,
                              .expert_layers = (uint16_t)s->expert_layers,
                              .experts = s->experts,
                              .proposed = (uint16_t)s->proposed,
                              .depth = (uint16_t)s->depth,
                              .accepted = (uint16_t)s->accepted,
                              .emitted = (uint16_t)s->emitted,
                              .flags = (uint16_t)s->flags,
                              .pass_seqs = (uint16_t)s->pass_seqs};
}

/* Room for n more judged nodes, doubling. */
static int reserve_judged(struct reader *r, int64_t n)
{
    struct trace *t = r->t;
    if (t->n_judged + n <= r->cap_judged)
        return 0;
    int64_t cap = 2 * r->cap_judged > t->n_judged + n ? 2 * r->cap_judged : t->n_judged + n;
    struct trace_judged *grown = realloc(t->judged, ((size_t)cap + 1) * sizeof *grown);
    if (!grown)
        FAIL(ERR_MEMORY, "%s: no memory for %lld judged nodes", t->path, (long long)cap);
    t->judged = grown;
    r->cap_judged = cap;
    return 0;
}

/* nodes [n] of one step: the ones whose parent is the root or was accepted. */
static int judge(struct reader *r, int64_t step, const struct trace_node *nodes, int n)
{
    TRY(reserve_judged(r, n));
    for (int k = 0; k < n; k++) {
        const struct trace_node *x = &nodes[k];
        TRY(trace_check_node(r->t, step, k, x));
        if (x->parent >= 0 && !nodes[x->parent].accepted)
            continue;
        r->t->judged[r->t->n_judged++] = (struct trace_judged){.log_q = x->log_q,
                                                               .entropy = x->entropy,
                                                               .rank = x->rank,
                                                               .depth = (uint16_t)x->depth,
                                                               .accepted = x->accepted != 0};
    }
    return 0;
}

/* The nodes of steps [n], which stand one behind the other. */
static int read_nodes(struct reader *r, int64_t first, int n)
{
    int64_t begin = -1, end = -1;
    for (int i = 0; i < n; i++) {
        const struct trace_step *s = &r->steps[i];
        if (!s->proposed)
            continue;
        if (begin < 0)
            begin = end = s->node_begin;
        if (s->node_begin != end)
            FAIL(ERR_FORMAT,
                 "%s: /steps row %lld: expected its nodes behind those of the step before, at row %lld, "
                 "found %lld",
                 r->t->path, (long long)(first + i), (long long)end, (long long)s->node_begin);
        end += s->proposed;
    }
    if (end - begin > r->cap_nodes) {
        free(r->nodes);
        r->nodes = malloc((size_t)(end - begin) * sizeof *r->nodes);
        r->cap_nodes = r->nodes ? end - begin : 0;
        if (!r->nodes)
            FAIL(ERR_MEMORY, "%s: no memory for %lld nodes", r->t->path, (long long)(end - begin));
    }
    return end > begin ? record_file_read(r->f, RECORD_NODES, begin, end - begin, r->nodes) : 0;
}

static int read_piece(struct reader *r, int64_t first, int n, int judged)
{
    struct trace *t = r->t;
    TRY(record_file_read(r->f, RECORD_STEPS, first, n, r->steps));
    for (int i = 0; i < n; i++) {
        TRY(trace_check_step(t, first + i, &r->steps[i], r->f));
        TRY(check_owner(r, first + i, &r->steps[i]));
    }
    if (judged)
        TRY(read_nodes(r, first, n));
    const struct trace_node *at = r->nodes;
    for (int i = 0; i < n; i++) {
        keep(&t->lean[first + i], &r->steps[i], t->n_judged);
        if (!judged)
            continue;
        TRY(judge(r, first + i, at, r->steps[i].proposed));
        at += r->steps[i].proposed;
    }
    return 0;
}

static int check_whole(const struct reader *r)
{
    const struct trace *t = r->t;
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        if (r->seen[i] != q->steps || (q->finish != TRACE_SCORED && r->emitted[i] != q->tokens))
            FAIL(ERR_FORMAT,
                 "%s: /requests row %lld: expected %lld steps that emitted %lld tokens, found %lld that "
                 "emitted %lld",
                 t->path, (long long)i, (long long)q->steps, (long long)q->tokens, (long long)r->seen[i],
                 (long long)r->emitted[i]);
    }
    return 0;
}

static int reader_init(struct reader *r, struct trace *t, struct record_file *f, int64_t n)
{
    *r = (struct reader){.t = t, .f = f};
    r->steps = malloc(PIECE * sizeof *r->steps);
    r->seen = calloc((size_t)t->n_requests + 1, sizeof *r->seen);
    r->emitted = calloc((size_t)t->n_requests + 1, sizeof *r->emitted);
    t->lean = (uint64_t)n < SIZE_MAX / sizeof *t->lean ? malloc(((size_t)n + 1) * sizeof *t->lean) : NULL;
    if (!r->steps || !r->seen || !r->emitted || !t->lean)
        FAIL(ERR_MEMORY, "%s: /steps: no memory for %lld rows", t->path, (long long)n);
    return 0;
}

int trace_lean_read(struct trace *t, struct record_file *f, unsigned parts)
{
    struct reader r;
    int64_t n = record_file_rows(f, RECORD_STEPS);
    int judged = (parts & TRACE_READ_JUDGED) && trace_has_nodes(t);
    int rc = reader_init(&r, t, f, n);
    for (int64_t i = 0; i < n && !rc; i += PIECE)
        rc = read_piece(&r, i, n - i < PIECE ? (int)(n - i) : PIECE, judged);
    if (!rc)
        rc = check_whole(&r);
    t->n_steps = n;
    free(r.steps);
    free(r.nodes);
    free(r.seen);
    free(r.emitted);
    return rc;
}

struct trace_step trace_step_at(const struct trace *t, int64_t i)
{
    if (!t->lean)
        return t->steps[i];
    const struct trace_lean *s = &t->lean[i];
    return (struct trace_step){.request = -1,
                               .position = s->position,
                               .proposed = s->proposed,
                               .depth = s->depth,
                               .accepted = s->accepted,
                               .emitted = s->emitted,
                               .flags = s->flags,
                               .pass_rows = s->pass_rows,
                               .pass_seqs = s->pass_seqs,
                               .ns_draft = (int64_t)s->ns_draft,
                               .ns_verify = (int64_t)s->ns_verify,
                               .ns_accept = (int64_t)s->ns_accept,
                               .ns_host = (int64_t)s->ns_host,
                               .ns_total = s->ns_total,
                               .node_begin = -1,
                               .experts = s->experts,
                               .expert_layers = s->expert_layers};
}

void trace_judged_at(const struct trace *t, int64_t i, int64_t *begin, int64_t *end)
{
    *begin = t->lean[i].judged_begin;
    *end = i + 1 < t->n_steps ? t->lean[i + 1].judged_begin : t->n_judged;
}
