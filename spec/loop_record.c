/* loop_record: a drained step becomes what callers see: texts grow, records are filled, answers that are over
 * leave their slots. Stop strings are decided here, where the text can be read; the device is then told to
 * leave the slot alone, and what it had begun for it is known by its serial and ignored. Nothing is computed
 * about nodes: the backend did that where the logits are. */
#include "engine/clock.h"
#include "engine/err.h"
#include "spec/loop_state.h"
#include <string.h>

static int64_t max_ns(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static enum finish finish_of(int end)
{
    return end == STEP_LENGTH ? FINISH_LENGTH : end == STEP_CONTEXT ? FINISH_CONTEXT : FINISH_NONE;
}

/* Token by token, as plain decoding would. How many belong to the answer. */
static int append(struct seq *q, const int *token, const struct step_slot *did)
{
    for (int i = 0; i < did->emitted; i++) {
        q->text[q->n++] = token[i];
        q->finish = stop_push(&q->stop, token[i]);
        if (q->finish != FINISH_NONE)
            return i + 1;
    }
    q->finish = finish_of(did->end);
    return did->emitted;
}

static void record_nodes(const struct spec *s, const struct step_entry *e, int slot, struct node_record *out)
{
    const size_t first = (size_t)slot * (size_t)s->opts.max_nodes;
    const int *path = e->path + (size_t)slot * (size_t)s->opts.max_depth;
    for (int k = 0; k < e->slot[slot].proposed; k++) {
        const struct step_node *n = &e->node[first + (size_t)k];
        out[k] = (struct node_record){.token = n->token,
                                      .parent = n->parent,
                                      .depth = n->depth,
                                      .log_q = n->log_q,
                                      .log_p = n->log_p,
                                      .rank = n->rank};
        if (s->opts.trace == TRACE_FULL) {
            out[k].entropy = n->entropy;
            out[k].gap = n->gap;
        }
    }
    for (int k = 0; k < e->slot[slot].accepted; k++)
        out[path[k]].accepted = 1;
}

/* Of the rows of one slot, which begin at `row` of the pass. */
static const int *record_chosen(const struct spec *s, const struct step_entry *e, int row, int n)
{
    const struct step_experts *x = &s->commit.experts;
    const size_t top_k = (size_t)x->top_k, layers = (size_t)x->layers, rows = (size_t)e->head->rows;
    if (!s->chosen)
        return NULL;
    int *first = s->chosen + (size_t)row * layers * top_k, *out = first;
    for (size_t r = (size_t)row; r < (size_t)(row + n); r++)
        for (size_t l = 0; l < layers; l++)
            for (size_t i = 0; i < top_k; i++)
                *out++ = e->expert[(l * rows + r) * top_k + i];
    return first;
}

int loop_first_row(const struct step_entry *e, int slot)
{
    int row = 0;
    for (int i = 0; i < slot; i++)
        if (e->slot[i].serial != 0)
            row += 1 + e->slot[i].proposed;
    return row;
}

static unsigned flags_of(const struct seq *q, int proposed)
{
    unsigned flags = 0;
    if (q->steps == 1)
        flags |= STEP_FIRST;
    if (proposed == 0)
        flags |= STEP_NO_DRAFT;
    if (q->finish == FINISH_STOP_TOKEN || q->finish == FINISH_STOP_STRING)
        flags |= STEP_STOP;
    if (q->finish == FINISH_LENGTH || q->finish == FINISH_CONTEXT)
        flags |= STEP_BUDGET;
    return flags;
}

static int record_slot(struct spec *s, const struct step_entry *e, int slot, struct step_record *r)
{
    struct seq *q = &s->seq[slot];
    const struct step_slot *did = &e->slot[slot];
    const size_t tokens = (size_t)slot * (1 + (size_t)s->opts.max_depth);
    if (did->end == STEP_NOT_FINITE)
        FAIL(ERR_DEVICE, "target's logits for position %d: expected finite numbers, found none",
             did->position + did->accepted);
    const int emitted = append(q, e->token + tokens, did);
    struct node_record *nodes = NULL;
    q->steps++;
    if (s->opts.trace != TRACE_STEPS) {
        nodes = s->nodes_of + (size_t)slot * (size_t)s->opts.max_nodes;
        record_nodes(s, e, slot, nodes);
    }
    *r = (struct step_record){.slot = slot,
                              .user = q->user,
                              .position = did->position,
                              .proposed = did->proposed,
                              .depth = did->depth,
                              .accepted = did->accepted,
                              .emitted = emitted,
                              .flags = flags_of(q, did->proposed),
                              .pass_rows = e->head->rows,
                              .pass_seqs = e->head->seqs,
                              .tokens = q->text + did->position,
                              .log_p = e->log_p + tokens,
                              .nodes = nodes,
                              .expert_layers = s->commit.experts.layers,
                              .top_k = s->commit.experts.top_k,
                              .distinct = e->distinct,
                              .chosen = record_chosen(s, e, loop_first_row(e, slot), 1 + did->proposed)};
    return 0;
}

/* The two clocks drift: nothing is seen before it happened, nothing happens before it is asked for. */
static void set_clock(struct spec *s, const struct step_head *h, const struct enqueued *q)
{
    const int64_t least = q->launched - h->clock[STEP_BEGIN], most = clock_ns() - h->clock[STEP_END];
    if (s->clock_offset < least)
        s->clock_offset = least;
    if (s->clock_offset > most)
        s->clock_offset = most;
}

/* When the device could have begun it: the step before was over, and the prompts that joined for it, and the
 * host had asked. */
static int64_t start_of(const struct spec *s, const struct enqueued *q, int n)
{
    int64_t start = max_ns(s->last_end, q->started - s->clock_offset);
    for (int i = 0; i < n; i++)
        if (s->records[i].flags & STEP_FIRST)
            start = max_ns(start, s->prefill_clock[2 * (size_t)s->records[i].slot + 1]);
    return start;
}

/* Times of the step, told by all its records. */
static void time_records(struct spec *s, const struct step_entry *e, int n)
{
    const struct enqueued *q = &s->enqueued[s->n_drained % LOOP_RING];
    const int64_t *at = e->head->clock, proposing = q->launched - q->started;
    set_clock(s, e->head, q);
    struct step_record times = {.ns_draft = max_ns(0, at[STEP_VERIFY] - at[STEP_BEGIN]),
                                .ns_verify = max_ns(0, at[STEP_ACCEPT] - at[STEP_VERIFY]),
                                .ns_accept = max_ns(0, at[STEP_END] - at[STEP_ACCEPT])};
    if (s->opts.draft->needs & DRAFT_HOST)
        times.ns_draft += proposing;
    times.ns_host =
        max_ns(0, at[STEP_END] - start_of(s, q, n) - times.ns_draft - times.ns_verify - times.ns_accept);
    times.ns_total = times.ns_host + times.ns_draft + times.ns_verify + times.ns_accept;
    s->last_end = at[STEP_END];
    for (int i = 0; i < n; i++) {
        struct step_record *r = &s->records[i];
        r->ns_draft = times.ns_draft;
        r->ns_verify = times.ns_verify;
        r->ns_accept = times.ns_accept;
        r->ns_host = times.ns_host;
        r->ns_total = times.ns_total;
    }
}

/* The answer of a slot that is over. A stop string ends it for the device too, in the order of operations. */
static int finish_slot(struct spec *s, int slot, const struct step_entry *e, struct spec_finished *out)
{
    static const int not_live = 0;
    struct backend *be = loop_backend(s);
    struct seq *q = &s->seq[slot];
    const int64_t *prefill = s->prefill_clock + 2 * (size_t)slot;
    q->active = 0;
    if (e->slot[slot].end == STEP_GOES_ON)
        TRY(be->ops->upload(be, &s->step.seq[slot].live, &not_live, sizeof not_live));
    *out = (struct spec_finished){.slot = slot,
                                  .user = q->user,
                                  .reason = q->finish,
                                  .tokens = q->text + q->n_prompt,
                                  .n = q->n - q->n_prompt,
                                  .steps = q->steps,
                                  .ns_prefill = prefill[1] - prefill[0],
                                  .ns_first = max_ns(1, q->first_end + s->clock_offset - q->submitted),
                                  .ns_decode = e->head->clock[STEP_END] - q->first_end};
    return 0;
}

int loop_drain(struct spec *s, const struct step_entry *e, struct spec_step *out)
{
    int n = 0, n_finished = 0;
    for (int slot = 0; slot < s->opts.slots; slot++)
        if (s->seq[slot].active && e->slot[slot].serial == s->seq[slot].serial)
            TRY(record_slot(s, e, slot, &s->records[n++]));
    time_records(s, e, n);
    for (int i = 0; i < n; i++) {
        const int slot = s->records[i].slot;
        struct seq *q = &s->seq[slot];
        if (q->steps == 1)
            q->first_end = s->last_end;
        if (q->finish != FINISH_NONE)
            TRY(finish_slot(s, slot, e, &s->finished[n_finished++]));
    }
    *out = (struct spec_step){s->records, n, s->finished, n_finished};
    return 0;
}
