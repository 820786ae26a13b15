/* backend_cpu_group: ranks of one process see each other's memory, so a collective is: say where the part
 * lies, read everybody's, and wait until everybody has read. Alone, a rank reads its own part once for every
 * rank. */
#include "engine/backend_cpu_group.h"
#include "engine/err.h"
#include <string.h>

static int world_of(const struct backend *be)
{
    return be->comm.world > 1 ? be->comm.world : 1;
}

int cpu_join(struct backend *be, const struct comm *c, size_t bytes)
{
    (void)bytes;
    be->comm = *c;
    return comm_barrier(c);
}

/* Where every rank's part lies. */
static int meet(const struct backend *be, const float *mine, const float *part[COMM_WORLD_MAX])
{
    const struct comm alone = {.world = 1};
    return comm_exchange(be->comm.world > 1 ? &be->comm : &alone, &mine, sizeof mine, part);
}

static int leave(const struct backend *be)
{
    return be->comm.world > 1 ? comm_barrier(&be->comm) : 0;
}

int cpu_reduce(struct backend *be, const struct reduce *a)
{
    const float *part[COMM_WORLD_MAX];
    TRY(meet(be, a->part, part));
    reduce_sum(a, part, world_of(be));
    TRY(leave(be));
    return be->ops->rmsnorm(be, &a->norm);
}

/* What a rank alone has of the whole: of each run of columns as many as its own part is wide. */
static void gather_alone(const struct gather *a, const struct comm *c)
{
    const int left = a->n - c->rank * a->each, mine = left < a->each ? left : a->each;
    for (int r = 0; r < a->rows; r++)
        for (int p = 0; p < c->world; p++) {
            const int room = a->n - p * a->each, n = room < mine ? room : mine;
            memcpy(a->whole + (size_t)r * (size_t)a->n + (size_t)p * (size_t)a->each,
                   a->part + (size_t)r * (size_t)mine, (size_t)n * sizeof(float));
        }
}

int cpu_gather(struct backend *be, const struct gather *a)
{
    const float *part[COMM_WORLD_MAX];
    if (be->comm.world > 1 && !be->comm.group) {
        gather_alone(a, &be->comm);
        return 0;
    }
    TRY(meet(be, a->part, part));
    gather_ref(a, part, world_of(be));
    return leave(be);
}
