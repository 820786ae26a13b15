/* toy_step: both blocks are shared out by the same function, so that one copy moves all of it. */
#include "tests/toy_step.h"
#include "engine/err.h"
#include "kernels/philox.h"
#include "tests/expect.h"
#include <stdlib.h>
#include <string.h>

static void *next(char **at, size_t n, size_t size)
{
    void *p = *at;
    *at += (n * size + 63) / 64 * 64;
    return p;
}

static size_t share_out(struct step *s, const struct trees *sizes, int cap, char *base, uint64_t **counter,
                        int **stop, int **chosen)
{
    const size_t slots = (size_t)sizes->slots, deep = (size_t)sizes->max_depth,
                 all = slots * (size_t)sizes->max_nodes, rows = slots + all;
    char *at = base;
    *s = (struct step){.cap = cap, .max_rows = (int)rows, .trees = *sizes};
    s->seq = next(&at, slots, sizeof *s->seq);
    s->clock = next(&at, STEP_CLOCKS, sizeof *s->clock);
    *counter = next(&at, 1, sizeof **counter);
    int **of_rows[] = {&s->token, &s->slot, &s->pos, &s->cell, &s->base, &s->path_off};
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        *of_rows[i] = next(&at, rows, sizeof(int));
    int **of_nodes[] = {&s->trees.token, &s->trees.parent, &s->trees.depth, &s->trees.q_row, &s->rank};
    for (size_t i = 0; i < sizeof of_nodes / sizeof *of_nodes; i++)
        *of_nodes[i] = next(&at, all, sizeof(int));
    float **floats[] = {&s->trees.log_q, &s->log_p, &s->entropy, &s->gap};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        *floats[i] = next(&at, all, sizeof(float));
    int **of_slots[] = {&s->first_row, &s->accepted, &s->bonus, &s->trees.n};
    for (size_t i = 0; i < sizeof of_slots / sizeof *of_slots; i++)
        *of_slots[i] = next(&at, slots, sizeof(int));
    s->accepted_path = next(&at, slots * deep, sizeof(int));
    s->emitted_log_p = next(&at, slots * (1 + deep), sizeof(float));
    s->path = next(&at, rows * (1 + deep), sizeof(int));
    s->text = next(&at, slots * (size_t)cap, sizeof(int));
    s->count = next(&at, 2, sizeof(int));
    *stop = next(&at, TOY_STOPS, sizeof(int));
    *chosen = next(&at, TOY_MOE_LAYERS * rows * TOY_TOP_K, sizeof(int));
    return (size_t)(at - base);
}

static struct step_experts toy_step_experts(const struct toy_step *t)
{
    return (struct step_experts){.chosen = t->chosen,
                                 .layers = TOY_MOE_LAYERS,
                                 .rows = t->host.max_rows,
                                 .top_k = TOY_TOP_K,
                                 .with_ids = 1};
}

void toy_step_open(struct toy_step *t, struct backend *be, const struct trees *sizes, int cap)
{
    static char nowhere[1];
    *t = (struct toy_step){.be = be};
    t->bytes = share_out(&t->host, sizes, cap, nowhere, &t->host_counter, &t->host_stop, &t->host_chosen);
    t->copy = aligned_alloc(64, t->bytes);
    EXPECT(t->copy);
    memset(t->copy, 0, t->bytes);
    EXPECT_MSG(be->ops->alloc(be, t->bytes, &t->block) == 0, "%s", err_text());
    share_out(&t->host, sizes, cap, t->copy, &t->host_counter, &t->host_stop, &t->host_chosen);
    share_out(&t->on, sizes, cap, t->block, &t->counter, &t->stop, &t->chosen);
    const struct step_experts experts = toy_step_experts(t);
    EXPECT_MSG(be->ops->alloc_host(be, TOY_RING * step_entry_bytes(sizes, &experts), &t->ring) == 0, "%s",
               err_text());
}

void toy_step_close(struct toy_step *t)
{
    t->be->ops->release(t->be, t->block);
    t->be->ops->release(t->be, t->ring);
    free(t->copy);
}

void toy_step_send(struct toy_step *t)
{
    EXPECT_MSG(t->be->ops->upload(t->be, t->block, t->copy, t->bytes) == 0, "%s", err_text());
}

void toy_step_fetch(struct toy_step *t)
{
    EXPECT_MSG(t->be->ops->download(t->be, t->copy, t->block, t->bytes) == 0, "%s", err_text());
    EXPECT_MSG(t->be->ops->sync(t->be) == 0, "%s", err_text());
}

void toy_step_text(struct toy_step *t, int slot, const int *tokens, int n, int n_prompt, int end)
{
    EXPECT(n >= 1 && n <= t->host.cap && end <= t->host.cap);
    memcpy(t->host.text + (size_t)slot * (size_t)t->host.cap, tokens, (size_t)n * sizeof *tokens);
    t->host.seq[slot] = (struct seq_state){.live = 1,
                                           .n = n,
                                           .n_prompt = n_prompt,
                                           .end = end,
                                           .context_end = t->host.cap,
                                           .serial = 1 + (uint32_t)slot};
}

void toy_step_tree(const struct toy_step *t, int slot, struct tree *out)
{
    const struct trees *from = &t->host.trees;
    const size_t first = (size_t)slot * (size_t)from->max_nodes;
    EXPECT(from->n[slot] <= out->max_nodes);
    for (int k = 0; k < from->n[slot]; k++) {
        const size_t i = first + (size_t)k;
        EXPECT(from->q_row[i] == -1);
        out->nodes[k] = (struct tree_node){.token = from->token[i],
                                           .parent = from->parent[i],
                                           .depth = from->depth[i],
                                           .log_q = from->log_q[i]};
    }
    out->n = from->n[slot];
}

enum { IDS = 9 }; /* few different tokens, so that stop tokens occur */

static int below(uint32_t seed, uint32_t what, uint32_t i, int n)
{
    return (int)(philox(21, seed, i, what, 0).v[0] % (uint32_t)n);
}

/* A tree whose nodes mostly continue the one before, so that some are chains in place. */
static void fill_tree(struct toy_step *t, uint32_t seed, int slot)
{
    struct trees *to = &t->host.trees;
    const size_t first = (size_t)slot * (size_t)to->max_nodes;
    to->n[slot] = to->max_nodes ? below(seed, 1, (uint32_t)slot, to->max_nodes + 1) : 0;
    if (to->max_depth == 0)
        to->n[slot] = 0;
    for (int k = 0; k < to->n[slot]; k++) {
        const size_t i = first + (size_t)k;
        const uint32_t id = (uint32_t)i;
        int parent = below(seed, 2, id, 4) ? k - 1 : below(seed, 3, id, k + 1) - 1;
        while (parent >= 0 && to->depth[first + (size_t)parent] >= to->max_depth)
            parent = to->parent[first + (size_t)parent];
        to->token[i] = below(seed, 4, id, IDS);
        to->parent[i] = parent;
        to->depth[i] = parent < 0 ? 1 : to->depth[first + (size_t)parent] + 1;
        to->q_row[i] = -1;
        to->log_q[i] = (float)-below(seed, 5, id, 1000) / 64;
        t->host.log_p[i] = (float)-below(seed, 6, id, 1000) / 64;
        t->host.entropy[i] = (float)below(seed, 7, id, 1000) / 64;
        t->host.gap[i] = (float)below(seed, 8, id, 1000) / 64;
        t->host.rank[i] = 1 + below(seed, 9, id, 1000);
    }
}

/* A path from the root's child downwards, and the bonus; now and then none, as a row without finite logits
 * leaves it. */
static void fill_accepted(struct toy_step *t, uint32_t seed, int slot)
{
    const struct trees *from = &t->host.trees;
    const size_t first = (size_t)slot * (size_t)from->max_nodes, deep = (size_t)from->max_depth;
    int at = -1, n = 0;
    for (int k = 0; k < from->n[slot]; k++)
        if (from->parent[first + (size_t)k] == at && below(seed, 10, (uint32_t)(first + (size_t)k), 4)) {
            t->host.accepted_path[(size_t)slot * deep + (size_t)n++] = k;
            at = k;
        }
    t->host.accepted[slot] = n;
    t->host.bonus[slot] = below(seed, 11, (uint32_t)slot, 16) ? below(seed, 12, (uint32_t)slot, IDS) : -1;
    for (size_t i = 0; i <= deep; i++)
        t->host.emitted_log_p[(size_t)slot * (1 + deep) + i] =
            (float)-below(seed, 13, (uint32_t)((size_t)slot * (1 + deep) + i), 1000) / 64;
}

/* Of few experts in some layers. */
static void fill_chosen(struct toy_step *t, uint32_t seed)
{
    const int rows = t->host.max_rows;
    for (int l = 0; l < TOY_MOE_LAYERS; l++)
        for (int i = 0; i < rows * TOY_TOP_K; i++) {
            const uint32_t id = (uint32_t)(l * rows * TOY_TOP_K + i);
            t->host_chosen[id] = below(seed, 23, id, l % 3 ? TOY_CHOICES : 5);
        }
}

void toy_step_fill(struct toy_step *t, uint32_t seed)
{
    struct step *s = &t->host;
    for (int slot = 0; slot < s->trees.slots; slot++) {
        const uint32_t id = (uint32_t)slot;
        const int n = 1 + below(seed, 14, id, s->cap - 1), room = s->cap - n;
        struct seq_state *q = &s->seq[slot];
        *q = (struct seq_state){.live = below(seed, 15, id, 4) > 0,
                                .n = n,
                                .n_prompt = 1 + below(seed, 16, id, n),
                                .end = n + 1 + below(seed, 17, id, room < 6 ? room : 6),
                                .context_end = n + 1 + below(seed, 18, id, room < 6 ? room : 6),
                                .request = id,
                                .serial = 1 + id};
        for (int i = 0; i < n; i++)
            s->text[(size_t)slot * (size_t)s->cap + (size_t)i] =
                below(seed, 19, (uint32_t)(slot * s->cap + i), IDS);
        fill_tree(t, seed, slot);
        fill_accepted(t, seed, slot);
    }
    for (int i = 0; i < TOY_STOPS; i++)
        t->host_stop[i] = below(seed, 20, (uint32_t)i, 2 * IDS);
    fill_chosen(t, seed);
}

unsigned char toy_cache_byte(int array, size_t i)
{
    return (unsigned char)philox(22, (uint32_t)array, (uint32_t)i, 1, 0).v[0];
}

void toy_cache_open(struct toy_cache *c, const struct toy_step *t, int n, enum kv_form form)
{
    const struct backend_ops *ops = t->be->ops;
    const int cells = (t->host.cap + t->host.trees.max_nodes + KV_BLOCK - 1) / KV_BLOCK * KV_BLOCK;
    void *layers = NULL;
    EXPECT(n <= 3);
    *c = (struct toy_cache){.n = n};
    c->bytes = (size_t)t->host.trees.slots * TOY_CACHE_HEADS * (size_t)cells * TOY_CACHE_DIM *
               ops->kv_bytes(t->be, form);
    for (int l = 0; l < n; l++) {
        c->host[l] = (struct kv_layer){.slots = t->host.trees.slots,
                                       .kv_heads = TOY_CACHE_HEADS,
                                       .head_dim = TOY_CACHE_DIM,
                                       .cap = cells,
                                       .form = form};
        EXPECT(ops->alloc(t->be, c->bytes, &c->host[l].k) == 0 &&
               ops->alloc(t->be, c->bytes, &c->host[l].v) == 0);
    }
    EXPECT(ops->alloc(t->be, sizeof c->host, &layers) == 0);
    EXPECT(ops->upload(t->be, layers, c->host, sizeof c->host) == 0);
    c->layers = layers;
}

void toy_cache_close(struct toy_cache *c, const struct toy_step *t)
{
    for (int l = 0; l < c->n; l++) {
        t->be->ops->release(t->be, c->host[l].k);
        t->be->ops->release(t->be, c->host[l].v);
    }
    t->be->ops->release(t->be, c->layers);
}

void toy_cache_fill(struct toy_cache *c, const struct toy_step *t)
{
    unsigned char *bytes = malloc(c->bytes);
    EXPECT(bytes);
    for (int array = 0; array < 2 * c->n; array++) {
        for (size_t i = 0; i < c->bytes; i++)
            bytes[i] = toy_cache_byte(array, i);
        EXPECT(t->be->ops->upload(t->be, array % 2 ? c->host[array / 2].v : c->host[array / 2].k, bytes,
                                  c->bytes) == 0);
    }
    free(bytes);
}

struct step_commit toy_step_commit(const struct toy_step *t, const struct toy_cache *c)
{
    return (struct step_commit){.step = &t->on,
                                .stop = t->stop,
                                .layers = c->layers,
                                .n_stop = TOY_STOPS,
                                .n_layers = c->n,
                                .kv_heads = TOY_CACHE_HEADS,
                                .with_nodes = 1,
                                .experts = toy_step_experts(t),
                                .ring = t->ring,
                                .depth = TOY_RING,
                                .counter = t->counter};
}

struct step_entry toy_step_entry(const struct toy_step *t, const struct step_commit *a, uint32_t seed)
{
    return step_entry_at(t->ring, &t->host.trees, &a->experts, seed % TOY_RING);
}
