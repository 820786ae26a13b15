/* model_plan: a model is built as ever, on a backend that counts instead of keeping: so the plan and the load
 * cannot disagree about names, shapes or forms. */
#include "engine/model_plan.h"
#include "engine/err.h"
#include "engine/log.h"
#include "kernels/cuda.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Every allocation is a byte, so that each has an address of its own. */
static int count_alloc(struct backend *be, size_t bytes, void **out)
{
    *out = malloc(1);
    if (!*out)
        FAIL(ERR_MEMORY, "out of memory for a plan");
    be->allocated += (bytes + 63) / 64 * 64; /* what alignment adds */
    return 0;
}

static void count_release(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static size_t count_available(struct backend *be)
{
    (void)be;
    return SIZE_MAX;
}

static int count_upload(struct backend *be, void *dst, const void *src, size_t bytes)
{
    (void)be, (void)dst, (void)src, (void)bytes;
    return 0;
}

static int on_cuda(const struct backend *be)
{
    return strcmp(be->device, "cuda") == 0;
}

static int count_matrix(struct backend *be, struct matrix *w, const struct matrix_source *from)
{
    const int n = matrix_source_n(from);
    const size_t bytes =
        on_cuda(be) ? matrix_cuda_bytes(n, from->k, from->form) : matrix_packed_bytes(n, from->k);
    struct matrix new = {.n = n, .k = from->k, .form = from->form};
    new.bytes = bytes + (from->form == MATRIX_FP8 ? (size_t)n * sizeof(float) : 0);
    TRY(count_alloc(be, new.bytes, &new.data));
    *w = new;
    return 0;
}

/* What loading calls, and nothing of what computes. */
static const struct backend_ops counting = {.name = "plan",
                                            .alloc = count_alloc,
                                            .release = count_release,
                                            .available = count_available,
                                            .upload = count_upload,
                                            .matrix = count_matrix};

static void add(struct model_plan *plan, const char *name, const struct matrix *w)
{
    int i = 0;
    while (i < plan->kinds && (strcmp(plan->kind[i].name, name) != 0 || plan->kind[i].n != w->n ||
                               plan->kind[i].k != w->k || plan->kind[i].form != w->form))
        i++;
    if (i == MODEL_PLAN_KINDS)
        i--; /* more than the table has: the bytes count with the last */
    plan->kind[i].name = name;
    plan->kind[i].n = w->n;
    plan->kind[i].k = w->k;
    plan->kind[i].form = w->form;
    plan->kind[i].count++;
    plan->kind[i].bytes += w->bytes;
    plan->kinds = i + 1 > plan->kinds ? i + 1 : plan->kinds;
}

static void add_layer(struct model_plan *plan, const struct layer *l)
{
    const int moe = l->kind & LAYER_MOE;
    add(plan, "query, key, value", &l->qkv);
    add(plan, "attention output", &l->o);
    add(plan, moe ? "shared gate, up" : "gate, up", &l->gate_up);
    add(plan, moe ? "shared down" : "down", &l->down);
    if (!moe)
        return;
    add(plan, "router", &l->router);
    for (int i = 0; i < plan->cfg.experts; i++) {
        add(plan, "expert gate, up", &l->expert_gate_up[i]);
        add(plan, "expert down", &l->expert_down[i]);
    }
}

static void describe(struct model_plan *plan, const struct model *m)
{
    const int wide = on_cuda(m->be) ? 2 : 4, kv = m->opts.kv == MODEL_FP8 && on_cuda(m->be) ? 1 : wide;
    *plan = (struct model_plan){.cfg = m->cfg, .part = m->part, .weights = m->be->allocated};
    plan->kv_cell =
        (size_t)2 * (size_t)kv * (size_t)m->cfg.layers * (size_t)m->part.kv_heads * (size_t)m->cfg.head_dim;
    add(plan, "embedding", &m->embed);
    if (m->head.data != m->embed.data)
        add(plan, "head", &m->head);
    for (int i = 0; i < m->cfg.layers; i++)
        add_layer(plan, &m->layers[i]);
}

void model_plan_backend(struct backend *be, const char *device)
{
    *be = (struct backend){.ops = &counting, .threads = 1, .counts = 1, .transposes = 1};
    snprintf(be->device, sizeof be->device, "%s", device);
}

int model_plan(struct model_plan *plan, const char *device, const char *dir, const struct model_config *shape,
               const struct model_opts *opts)
{
    struct backend be;
    struct model m = {.be = NULL};
    model_plan_backend(&be, device);
    TRY(dir ? model_load(&m, &be, dir, opts) : model_synthetic(&m, &be, shape, 1, opts));
    describe(plan, &m);
    model_deinit(&m);
    return 0;
}

void model_plan_print(const struct model_plan *plan, struct shard shard, int sequences, int cells,
                      size_t room, FILE *out)
{
    const size_t kv = plan->kv_cell * (size_t)cells * (size_t)sequences, sum = plan->weights + kv;
    fprintf(out, "rank %d of %d: %s\n", shard.rank, shard.world > 1 ? shard.world : 1,
            plan->cfg.architecture);
    for (int i = 0; i < plan->kinds; i++)
        fprintf(out, "  %6d x %-18s [%6d, %6d] %s %12.1f MiB\n", plan->kind[i].count, plan->kind[i].name,
                plan->kind[i].n, plan->kind[i].k, plan->kind[i].form == MATRIX_FP8 ? "FP8 " : "BF16",
                (double)plan->kind[i].bytes / 0x1p20);
    fprintf(out, "  weights %.1f MiB; key/value cache %zu bytes a position", (double)plan->weights / 0x1p20,
            plan->kv_cell);
    if (cells)
        fprintf(out, ", of %d x %d positions %.1f MiB; together %.1f MiB", sequences, cells,
                (double)kv / 0x1p20, (double)sum / 0x1p20);
    fprintf(out, "; scratch not counted\n");
    if (room == SIZE_MAX)
        fprintf(out, "  free memory of the device is not known\n");
    else
        fprintf(out, "  %.1f MiB of the device are free%s\n", (double)room / 0x1p20,
                sum > room ? ": NOT ENOUGH" : "");
}
