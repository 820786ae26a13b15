/* kv: two arrays a layer on the backend and two counters a slot on the host. Committing a path copies only
 * the cells after the first gap: a chain that was accepted from its start moves nothing. */
#include "engine/kv.h"
#include "engine/err.h"
#include <assert.h>
#include <stdlib.h>

enum { CAP_MAX = 1 << 28 };

/* Before anything is allocated: what does fit, in the words of an experiment. */
static int check_room(const struct kv *kv)
{
    const size_t room = kv->be->ops->available(kv->be), slots = (size_t)kv->slots, cap = (size_t)kv->cap;
    if (kv->bytes <= room)
        return 0;
    FAIL(ERR_MEMORY,
         "%.0f MiB are needed and %.0f MiB are free on %s; model.max_context would have to leave %zu cells a "
         "sequence "
         "(now %zu), or workload.concurrency be at most %zu (now %zu)",
         (double)kv->bytes / 0x1p20, (double)room / 0x1p20, kv->be->device,
         room / (kv->bytes / cap) / KV_BLOCK * KV_BLOCK, cap, room / (kv->bytes / slots), slots);
}

static int alloc_layers(struct kv *kv, int kv_heads, int head_dim, enum kv_form form)
{
    const size_t width = (size_t)kv_heads * (size_t)head_dim;
    size_t bytes;
    if (__builtin_mul_overflow((size_t)kv->slots * (size_t)kv->cap,
                               width * kv->be->ops->kv_bytes(kv->be, form), &bytes) ||
        __builtin_mul_overflow(bytes, 2 * (size_t)kv->n_layers, &kv->bytes))
        FAIL(ERR_MEMORY, "kv: %d slots of %d cells are more bytes than an address can say", kv->slots,
             kv->cap);
    TRY(check_room(kv));
    for (int i = 0; i < kv->n_layers; i++) {
        struct kv_layer *l = &kv->layers[i];
        *l = (struct kv_layer){
            .form = form, .slots = kv->slots, .kv_heads = kv_heads, .head_dim = head_dim, .cap = kv->cap};
        TRY(kv->be->ops->alloc(kv->be, bytes, &l->k));
        TRY(kv->be->ops->alloc(kv->be, bytes, &l->v));
    }
    return 0;
}

int kv_init(struct kv *kv, struct backend *be, const struct model *m, int slots, int cap)
{
    int rc = 0;
    struct kv new = {.be = be, .n_layers = m->cfg.layers, .slots = slots};
    assert(slots > 0 && cap > 0);
    if (cap > CAP_MAX) {
        rc = ERR_SET(ERR_LIMIT, "kv: expected at most %d cells a slot, found %d", CAP_MAX, cap);
        goto out;
    }
    new.cap = (cap + KV_BLOCK - 1) / KV_BLOCK *KV_BLOCK;
    new.layers = calloc((size_t) new.n_layers, sizeof *new.layers);
    new.slot = calloc((size_t)slots, sizeof *new.slot);
    new.move = calloc((size_t) new.cap, sizeof *new.move);
    if (!new.layers || !new.slot || !new.move) {
        rc = ERR_SET(ERR_MEMORY, "kv: out of memory for the books of %d slots of %d cells", slots, new.cap);
        goto out;
    }
    rc = alloc_layers(&new, m->part.kv_heads, m->cfg.head_dim, m->opts.kv == MODEL_FP8 ? KV_FP8 : KV_WIDE);
    if (rc) {
        err_context("kv: %d slots of %d cells, %zu bytes", slots, new.cap, new.bytes);
        goto out;
    }
    *kv = new;
    new = (struct kv){0};
out:
    kv_deinit(&new);
    return rc;
}

void kv_deinit(struct kv *kv)
{
    for (int i = 0; kv->layers && i < kv->n_layers; i++) {
        kv->be->ops->release(kv->be, kv->layers[i].k);
        kv->be->ops->release(kv->be, kv->layers[i].v);
    }
    free(kv->layers);
    free(kv->slot);
    free(kv->move);
    *kv = (struct kv){0};
}

void kv_reset(struct kv *kv, int slot)
{
    assert(slot >= 0 && slot < kv->slots);
    kv->slot[slot] = (struct kv_slot){0};
}

int kv_commit(struct kv *kv, int slot, const int *keep, int n)
{
    assert(slot >= 0 && slot < kv->slots && n >= 0);
    struct kv_slot *s = &kv->slot[slot];
    int stay = 0;
    for (int i = 0; i < n; i++)
        assert(keep[i] > (i ? keep[i - 1] : -1) && keep[i] < s->used - s->committed);
    while (stay < n && keep[stay] == stay)
        stay++;
    for (int i = stay; i < n; i++)
        kv->move[i - stay] = s->committed + keep[i];
    for (int l = 0; l < kv->n_layers && stay < n; l++) {
        struct kv_move a = {
            .kv = kv->layers[l], .slot = slot, .dst = s->committed + stay, .n = n - stay, .src = kv->move};
        TRY(kv->be->ops->kv_move(kv->be, &a));
    }
    s->committed += n;
    s->used = s->committed;
    return 0;
}
