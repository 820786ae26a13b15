/* loop_step: one step as a list of operations, the same for the same envelope of rows, reach of positions and
 * trace: what the backend may record once. The envelope has room for the largest tree of every sequence that
 * may still be going; rows that nobody needs are dead. A backend that computes when called knows how many
 * rows are alive, and computes no others. */
#include "engine/clock.h"
#include "engine/err.h"
#include "spec/loop_state.h"
#include <assert.h>
#include <sched.h>

enum { EXACT_ROWS = 8, POLL_EVERY = 4096 };

/* Few different ones, so that few are recorded; up to eight rows cost what one costs anyway. */
static int envelope(const struct spec *s, int rows)
{
    const int more = (rows + EXACT_ROWS - 1) / EXACT_ROWS * EXACT_ROWS;
    return rows <= EXACT_ROWS ? rows : loop_min(more, s->step.max_rows);
}

/* Every position of the step is below it: a text grows by a whole path and the bonus in each step under way,
 * but never past its end. */
static int end_of_positions(const struct spec *s)
{
    const int depth = s->opts.max_depth;
    int most = 1;
    for (int slot = 0; slot < s->opts.slots; slot++) {
        const struct seq *q = &s->seq[slot];
        if (!loop_goes_on(s, q))
            continue;
        const int64_t grown = q->n + (int64_t)loop_in_flight(s, q) * (1 + depth) + depth;
        const int end = loop_end(s, q);
        if ((grown < end ? (int)grown : end) > most)
            most = grown < end ? (int)grown : end;
    }
    return most;
}

static int rows_of_all(const struct spec *s)
{
    int n = 0;
    for (int slot = 0; slot < s->opts.slots; slot++)
        n += loop_goes_on(s, &s->seq[slot]);
    return n * (1 + s->opts.max_nodes);
}

/* Positions are below `end`. */
static int forward_step(struct spec *s, int rows, int end, unsigned flags)
{
    struct rows live = step_rows(&s->step, rows);
    if (loop_backend(s)->host_reads) {
        live.n = s->step.count[0];
        for (int r = 0; r < live.n; r++)
            assert(live.pos[r] < end);
    }
    s->commit.experts.rows = live.n;
    return live.n > 0 ? forward_enqueue(&s->fwd, &live, forward_reach(&s->fwd, end), flags) : 0;
}

static int enqueue_operations(struct spec *s, int rows, int end, unsigned flags)
{
    struct backend *be = loop_backend(s);
    if (!(s->opts.draft->needs & DRAFT_HOST))
        TRY_CTX(s->opts.draft->enqueue(s->draft, &s->step), "draft '%s'", s->opts.draft->name);
    TRY(be->ops->step_plan(be, &s->step, rows));
    TRY(forward_step(s, rows, end, flags));
    TRY(be->ops->accept(be, &s->accept));
    TRY(be->ops->node_stats(be, &s->stats));
    return be->ops->step_commit(be, &s->commit);
}

int loop_enqueue(struct spec *s, int rows, int64_t started)
{
    struct backend *be = loop_backend(s);
    const int most = envelope(s, rows ? rows : rows_of_all(s)), end = end_of_positions(s);
    const unsigned flags = FORWARD_LOGITS | (s->opts.trace == TRACE_FULL ? FORWARD_ENTROPY : 0);
    int recorded = 0;
    s->enqueued[s->n_enqueued % LOOP_RING] = (struct enqueued){started, clock_ns()};
    TRY(be->ops->pass_begin(be, (struct pass_key){s, most, forward_reach(&s->fwd, end), flags}, &recorded));
    if (!recorded)
        TRY_CTX(be->ops->pass_end(be, enqueue_operations(s, most, end, flags)),
                "a step of %d rows at positions below %d", most, end);
    s->n_enqueued++;
    return 0;
}

static uint64_t sequence_of(const struct step_entry *e)
{
    return __atomic_load_n(&e->head->sequence, __ATOMIC_ACQUIRE);
}

/* The record comes by itself; now and then the backend is asked whether something went wrong instead. */
int loop_wait(struct spec *s, struct step_entry *e)
{
    struct backend *be = loop_backend(s);
    const uint64_t wanted = s->n_drained + 1;
    *e = step_entry_at(s->ring, &s->step.trees, &s->commit.experts, (size_t)(s->n_drained % LOOP_RING));
    for (int polls = 1; sequence_of(e) != wanted; polls++) {
        int idle = 0;
        if (polls % POLL_EVERY == 0)
            TRY(be->ops->poll(be, &idle));
        if (idle && sequence_of(e) != wanted)
            FAIL(ERR_DEVICE, "step %llu: %s has done all its work and left no record of it",
                 (unsigned long long)wanted, be->device);
        sched_yield();
    }
    return 0;
}
