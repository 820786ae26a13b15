/* group: the calls of a loop, made in all ranks at once. */
#include "spec/group.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

struct spec_group {
    struct ranks *ranks; /* borrowed */
    struct spec *spec[COMM_WORLD_MAX];
    struct spec_step step[COMM_WORLD_MAX];
};

struct opening {
    struct spec_group *group;
    const struct spec_opts *opts;
};

static int open_rank(void *ctx, struct rank *rank)
{
    const struct opening *o = ctx;
    return spec_open(&o->group->spec[rank->comm.rank], rank->model, o->opts);
}

static int close_rank(void *ctx, struct rank *rank)
{
    struct spec_group *g = ctx;
    spec_close(g->spec[rank->comm.rank]);
    return 0;
}

int spec_group_open(struct spec_group **out, struct ranks *ranks, const struct spec_opts *opts)
{
    struct spec_group *g = calloc(1, sizeof *g);
    if (!g)
        FAIL(ERR_MEMORY, "group: out of memory for %d ranks", ranks_world(ranks));
    g->ranks = ranks;
    struct opening o = {g, opts};
    const int rc = ranks_do(ranks, open_rank, &o);
    if (rc)
        spec_group_close(g);
    else
        *out = g;
    return rc;
}

void spec_group_close(struct spec_group *g)
{
    if (g)
        ranks_do(g->ranks, close_rank, g);
    free(g);
}

struct submission {
    struct spec_group *group;
    const struct spec_request *request;
};

static int submit_rank(void *ctx, struct rank *rank)
{
    const struct submission *s = ctx;
    return spec_submit(s->group->spec[rank->comm.rank], s->request);
}

int spec_group_submit(struct spec_group *g, const struct spec_request *r)
{
    struct submission s = {g, r};
    return ranks_do(g->ranks, submit_rank, &s);
}

static int step_rank(void *ctx, struct rank *rank)
{
    struct spec_group *g = ctx;
    return spec_step(g->spec[rank->comm.rank], &g->step[rank->comm.rank]);
}

/* Of one sequence's step, against rank 0's; tokens decide all else. */
static int check_record(const struct step_record *a, const struct step_record *b, int rank)
{
    const size_t bytes = (size_t)a->emitted * sizeof *a->tokens;
    if (a->slot == b->slot && a->position == b->position && a->accepted == b->accepted &&
        a->emitted == b->emitted && memcmp(a->tokens, b->tokens, bytes) == 0)
        return 0;
    FAIL(ERR_DEVICE,
         "ranks 0 and %d took different decisions: in slot %d at position %d, %d tokens, the first %d, "
         "against slot %d, position %d, %d tokens, the first %d; their logits differ",
         rank, a->slot, a->position, a->emitted, a->emitted > 0 ? a->tokens[0] : -1, b->slot, b->position,
         b->emitted, b->emitted > 0 ? b->tokens[0] : -1);
}

static int check_ranks(const struct spec_group *g)
{
    const struct spec_step *a = &g->step[0];
    for (int rank = 1; rank < ranks_world(g->ranks); rank++) {
        const struct spec_step *b = &g->step[rank];
        if (a->n_records != b->n_records || a->n_finished != b->n_finished)
            FAIL(ERR_DEVICE,
                 "ranks 0 and %d took different decisions: %d sequences went on and %d ended, against %d and "
                 "%d",
                 rank, a->n_records, a->n_finished, b->n_records, b->n_finished);
        for (int i = 0; i < a->n_records; i++)
            TRY(check_record(&a->records[i], &b->records[i], rank));
    }
    return 0;
}

int spec_group_step(struct spec_group *g, struct spec_step *out)
{
    TRY(ranks_do(g->ranks, step_rank, g));
    TRY(check_ranks(g));
    *out = g->step[0];
    return 0;
}

static int abort_rank(void *ctx, struct rank *rank)
{
    struct spec_group *g = ctx;
    spec_abort(g->spec[rank->comm.rank]);
    return 0;
}

void spec_group_abort(struct spec_group *g)
{
    ranks_do(g->ranks, abort_rank, g);
}

const struct spec *spec_group_first(const struct spec_group *g)
{
    return g->spec[0];
}
